"""Which models there are, which of their versions are served, and why the others are not."""
