"""Defences in front of a restorer."""
