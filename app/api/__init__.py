"""The HTTP edge: the gate, and one file for each protocol."""
