"""What executes a fitted estimator."""
