"""Figures of the package: ratios against bare loops, and the quality of the shipped networks."""
