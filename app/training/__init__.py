"""From data to a version on disk: recipes for the demo models, and `publish` for everybody's own."""
