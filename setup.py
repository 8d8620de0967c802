"""Packaging. `kernels/` stands beside the package in the checkout and is installed as `vision_jax.kernels`."""

from setuptools import find_packages, setup

library = find_packages(include=["vision_jax", "vision_jax.*"])
kernels = ["vision_jax.kernels"] + [f"vision_jax.kernels.{name}" for name in find_packages("kernels")]

setup(
    packages=library + kernels,
    package_dir={"vision_jax": "vision_jax", "vision_jax.kernels": "kernels"},
)
