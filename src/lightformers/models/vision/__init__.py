"""Architectures that look at images."""
