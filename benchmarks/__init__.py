"""Measurements: run by hand, since a number from a busy machine says nothing."""
