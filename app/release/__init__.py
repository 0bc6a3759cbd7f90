"""Promotion with evidence, comparison of versions that run side by side, and replay of what was logged."""
