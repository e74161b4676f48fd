"""Image metrics by protocol, and statistics."""
