"""Attentions that are not plain softmax, and transformers' attention interface, through which unchanged models run them.

A *core* is what stands between the projections, so the same one serves our encoders (`parts.mixers.efficient`) and a
transformers model (`swapped`): `core(q, k, v, mask=None)`, all (batch, heads, n, size), gives the same shape.

- mask: (batch, n) bool, True at tokens, or None. Padding stands on the right: whoever calls uses `heads.run`, which
  brings it there. What a core gives at padding means nothing.
- Lengths that a core's blocks do not divide are padded inside. Where nothing may be seen, it gives zeros.
- `core.reads`: those of "qkv" that it looks at; the others may be None (reformer has no keys of its own, a random
  synthesizer neither queries nor keys; a dense one takes the queries for its first layer).
- `core.anywhere` (False where there is none): whether it does not look at where tokens stand, so that padding may stand anywhere, and a graph traced at
  one length holds for others.
- `core.second`: it also takes `second=(q, k, v)` from projections of their own (longformer's global tokens).
- `core.equals_softmax(n)`: whether it gives softmax(qk'/sqrt(size))v at n positions without padding.
- What is random and not learnt is a buffer that is saved, drawn from `seed`; no core drops probabilities in training.

`table.CORES` names them all.
"""
