"""Architectures, one file each, built from `lightformers.parts`. Presets are rows with the papers' parameter counts."""
