"""Hot loops. Each file holds a literal `reference`, short and slow, and a fast form of the same name as the file.

They are functions of tensors that import nothing above them. The fast form gives what the reference gives, in outputs
and gradients, at every length; it runs wherever PyTorch runs. Recurrences are computed in float32 or better, also under
autocast, and take what they need of memory in proportion to the length.
"""
