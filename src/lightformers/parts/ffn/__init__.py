"""Feed-forward layers: `forward(x)`, (..., width) -> (..., width), each position for itself."""
