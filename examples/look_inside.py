"""Anatomy of a model that transformers builds: where the pieces are, and what cutting some of them does.

Needs nothing but the core package. Takes seconds.
"""

from __future__ import annotations

from transformers import LlamaConfig, LlamaForCausalLM

import lightformers as lf


def main() -> None:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=1000,
    )
    model = LlamaForCausalLM(config)
    found = lf.anatomy.of(model)
    for block in found.blocks:
        print(block.path, block.attention.heads, "heads,", block.feed_forward.width, "channels")
    lf.anatomy.surgery.keep_blocks(model, [0, 1, 3])
    lf.anatomy.surgery.keep_heads(model, {i: [0, 1, 2, 3] for i in range(3)})
    print(
        len(lf.anatomy.of(model).blocks),
        "blocks left;",
        lf.anatomy.native_reasons(model) or "reloads in plain transformers",
    )


if __name__ == "__main__":
    main()
