"""How fast things run, beside what a user would otherwise pick: `python -m vision_jax.tools.bench`."""
