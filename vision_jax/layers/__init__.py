"""The shared primitives: one file an idea."""
