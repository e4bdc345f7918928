"""Profiles of data, and tests and effects of the difference between two: pure functions on numpy."""
