"""The feed-forward layers that a model's configuration may name (`mixers.table.make`). A new one adds its row here."""

from __future__ import annotations

FEED_FORWARDS: dict[str, str] = {
    "mlp": "lightformers.parts.ffn.plain:MLP",
    "swiglu": "lightformers.parts.ffn.plain:SwiGLU",
}
