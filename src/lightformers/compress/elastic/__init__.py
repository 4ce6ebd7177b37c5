"""Elastic models: one set of weights that holds many networks, each ready without training again.

`Size` says how large a sub-network is, `Space` which sizes there are, `Shared` runs and trains them on the whole
model's weights, `Elastic` keeps the trained whole with its space, picks sizes for a budget and extracts them. A paper
is a training programme on these: which sizes nest, how they are sampled, what the loss is.
"""
