"""The feed-forward layers that a model's configuration may name (`mixers.table.make`). A new one adds its row here."""

from __future__ import annotations

FEED_FORWARDS: dict[str, str] = {
    "bit-swiglu": "lightformers.parts.ffn.bit_swiglu:BitSwiGLU",
    "memory": "lightformers.parts.ffn.memory_layer:MemoryFeedForward",
    "mlp": "lightformers.parts.ffn.plain:MLP",
    "pattention": "lightformers.parts.ffn.pattention:feed_forward",
    "structured": "lightformers.parts.ffn.structured:StructuredFeedForward",
    "swiglu": "lightformers.parts.ffn.plain:SwiGLU",
    "thor": "lightformers.parts.routing.thor:StochasticExperts",
}
