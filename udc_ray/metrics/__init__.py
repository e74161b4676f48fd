"""Image metrics by protocol, perceptual distances, and statistics."""
