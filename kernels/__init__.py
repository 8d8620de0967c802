"""Attention operators over plain arrays. They know nothing of models."""

from vision_jax.kernels.window_attention import window_attention

__all__ = ["window_attention"]
