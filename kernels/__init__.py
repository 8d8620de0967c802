"""Attention operators over plain arrays. They know nothing of models."""

from vision_jax.kernels.dispatch import explain
from vision_jax.kernels.linear_attention import linear_attention
from vision_jax.kernels.neighborhood_attention import (
    neighborhood_aggregate,
    neighborhood_attention,
    neighborhood_scores,
)
from vision_jax.kernels.window_attention import window_attention

__all__ = [
    "explain",
    "linear_attention",
    "neighborhood_aggregate",
    "neighborhood_attention",
    "neighborhood_scores",
    "window_attention",
]
