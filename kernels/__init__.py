"""Attention operators over plain arrays. They know nothing of models."""
