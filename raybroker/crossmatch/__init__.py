"""Columns from the sky: what is known at an alert's position."""
