"""The verb: predict."""
