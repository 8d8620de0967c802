"""Commands beside the trainer."""
