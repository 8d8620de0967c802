"""What is trained: each task owns its loss, its metrics and the preparation of its targets."""
