"""Sequence mixers: `forward(x, mask=None)`, (batch, length, width) -> (batch, length, width).

mask: (batch, length), 0 at padding, on whichever side; None where nothing is padded. What stands at padding never
reaches another position, and a sequence gives the same with padding as alone.
"""
