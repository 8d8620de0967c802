"""Sources of examples and the way from them to batches."""
