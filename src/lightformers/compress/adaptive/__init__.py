"""Models that spend as much on an input as it needs."""
