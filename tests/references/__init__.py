"""References that no package offers."""
