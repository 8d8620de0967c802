"""Sharding rules and processes."""
