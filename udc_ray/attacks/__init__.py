"""Attacks on restorers."""
