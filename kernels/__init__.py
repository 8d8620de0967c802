"""Attention operators over plain arrays. They know nothing of models."""

from vision_jax.kernels.linear_attention import linear_attention
from vision_jax.kernels.window_attention import window_attention

__all__ = ["linear_attention", "window_attention"]
