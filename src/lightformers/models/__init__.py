"""Architectures: plain modules built from `parts`, that bring `from_pretrained` and `save_pretrained` (safetensors)."""
