"""BCT: everything in a transformer in small blocks of integers, each with its own power-of-two step, no training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.anatomy.find import host
from lightformers.bundle import Bundle
from lightformers.compress.layers import linears
from lightformers.compress.quantize import lookup
from lightformers.errors import ModelError, UserError
from lightformers.parts.activation_quantizer import ActivationQuantizer
from lightformers.parts.attention.interface import AttentionSettings, check, use
from lightformers.parts.blocks import Block, grid, quantize_matrix
from lightformers.parts.number_formats import number_format
from lightformers.parts.packed_layers import PackedEmbedding, PackedLinear
from lightformers.parts.quantized_norm import QuantizedNorm, from_norm
from lightformers.steps import Run, Stage

OPERATORS = ("weights", "activations", "embeddings", "softmax", "norms")


def bits_per_weight(shape: tuple[int, int], form: str, block: Block, power_of_two: bool = True) -> float:
    """Stored bits of one number of a matrix (rows, columns), steps and unused ends of bytes included."""
    rows, columns = shape
    high, wide = grid(shape, block)
    packed = 8 * rows * -(-columns // number_format(form).per_byte)
    return (packed + (8 if power_of_two else 32) * high * wide) / (rows * columns)


def compression(model: nn.Module) -> float:
    """Bytes of the model in fp32 over its bytes as it is: all weights, steps, norms and biases, tied ones once."""
    before = after = 0
    for module in model.modules():
        matrix = getattr(module, "matrix", None)
        if matrix is not None:
            before += 4 * matrix.rows * matrix.columns
    held = {t.data_ptr(): t for t in model.state_dict().values() if t.numel()}
    after = sum(t.numel() * t.element_size() for t in held.values())
    before += sum(4 * p.numel() for p in model.parameters())
    return before / after if after else 1.0


@dataclass(frozen=True)
class BlockwiseQuantize:
    """Block-wise quantization of all components, without training or data (Dong et al., 2023, arXiv 2304.01483).

    A block of numbers shares one step, the smallest power of two at which its largest number fits, stored in eight
    bits. Weights are packed; activations are rounded where they enter and leave a product, so GELU maps one rounded
    tensor to another, as a table would. Scores are products of rounded queries and keys. Runs from the packed form
    in torch; no fast kernel exists yet, so it is slower than fp32.

    bits, activation_bits: of weights (with embeddings), and of everything that flows. 8/8 and 4/8 are the paper's.
    block: rows and columns of a weight block; 0 for all (the whole matrix: (0, 0); rows: (1, 0)).
    activation_block: how many neighbouring features of a token share a step; 0: all of them.
    operators: what is quantized, any of weights, activations (GELU with them), embeddings, softmax, norms.
    power_of_two: False gives every block a real step in 32 bits, to see what the powers cost.

    The card's design choices: blocks of 64 x 64 and 1 x 64 (the paper's size is not known to us), steps of
    activations found anew in every forward. Deviations: probabilities get blocks with their own steps instead of the
    fixed 1/256, which would round rows of more than 512 equal keys to nothing; they are signed like all else; sums
    over blocks and the inverse root of norms are floats; 8-bit float intermediates are not built; poolers stay
    floats. A table shared by
    several modules (t5's) and the embeddings of images stay floats.
    """

    bits: int = 8
    activation_bits: int = 8
    block: Block = (64, 64)
    activation_block: int = 64
    operators: tuple[str, ...] = OPERATORS
    power_of_two: bool = True
    stage: ClassVar[Stage] = Stage.QUANTIZE

    def __post_init__(self) -> None:
        object.__setattr__(self, "operators", tuple(self.operators))
        object.__setattr__(self, "block", tuple(self.block))
        if not self.operators or set(self.operators) - set(OPERATORS):
            raise UserError(f"operators must be some of {', '.join(OPERATORS)}")
        if "weights" not in self.operators and "activations" in self.operators:
            raise UserError(
                "activations are rounded where quantized weights read them: add weights to operators"
            )
        if len(self.block) != 2 or min(self.block) < 0 or self.activation_block < 0:
            raise UserError(
                f"block sizes are 1 or more, or 0 for all; got {self.block}, {self.activation_block}"
            )
        for bits in (self.bits, self.activation_bits):
            number_format(f"int{bits}")

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Looks at no data. Raises ModelError for replaced layers, unknown norms, attention that cannot be exchanged."""
        model, found = bundle.model, anatomy.of(bundle.model)
        new: dict[str, nn.Module] = {}
        with torch.no_grad():
            if "weights" in self.operators:
                top = lookup.head(model)
                for path in (*linears(found), *([top] if top else [])):
                    new[path] = self._linear(model, path, last=path == top)
            if "embeddings" in self.operators:
                new |= {p: self._table(anatomy.get(model, p)) for p in lookup.tables(model)}
            if "norms" in self.operators:
                new |= {p: self._norm(model, p) for p in _norms(found)}
        if "softmax" in self.operators:
            check(host(model)[1], {p: anatomy.get(model, p) for p in _attentions(found)})
        if not new and "softmax" not in self.operators:
            raise ModelError(f"this {found.family} model has nothing of {', '.join(self.operators)}")
        if found.tied and new.keys() & {found.head, found.embeddings}:
            lookup.untie(model)
        for path, module in new.items():
            anatomy.surgery.replace(model, path, module)
        if "softmax" in self.operators:
            flow = self._flow().args
            use(host(model)[1], AttentionSettings(table=True, operands=flow, weights=flow))
        return bundle

    def _flow(self) -> ActivationQuantizer:
        """How everything that flows is rounded."""
        group: Any = "block" if self.activation_block else "token"
        return ActivationQuantizer(
            f"int{self.activation_bits}", group, self.activation_block or 64, power_of_two=self.power_of_two
        )

    def _linear(self, model: nn.Module, path: str, last: bool) -> PackedLinear:
        weight, bias = anatomy.linear(model, path)
        flows = "activations" in self.operators
        try:
            return PackedLinear.from_weight(
                weight.detach(), bias, f"int{self.bits}", self.block, self.power_of_two,
                self._flow() if flows else None, self._flow() if flows and not last else None,
            )  # fmt: skip
        except ValueError as error:
            raise ModelError(f"{path}: {error}") from error

    def _table(self, module: nn.Module) -> PackedEmbedding:
        weight: Tensor = module.weight.detach()  # type: ignore[assignment, operator]
        form = f"int{self.bits}"
        # each row is looked up on its own, so blocks are of single rows
        block = (1, self.block[1]) if self.block != (0, 0) else self.block
        levels, step = quantize_matrix(weight.float(), number_format(form), block, self.power_of_two)
        return PackedEmbedding.from_levels(levels, step, form, block, self.power_of_two, dtype=weight.dtype)

    def _norm(self, model: nn.Module, path: str) -> QuantizedNorm:
        flow = self._flow().args
        made = from_norm(anatomy.get(model, path), input=flow, output=flow, table=flow)
        if made is None:
            kind = type(anatomy.get(model, path)).__name__
            raise ModelError(
                f'{path} is a {kind}, neither LayerNorm nor RMSNorm: leave "norms" out of operators'
            )
        return made


def _norms(found: anatomy.Anatomy) -> list[str]:
    paths = [n for b in found.blocks for n in b.norms]
    for stack in found.stacks:
        paths += [p for p in (stack.embedding_norm, stack.final_norm) if p]
    return list(dict.fromkeys(paths))


def _attentions(found: anatomy.Anatomy) -> list[str]:
    return [a.path for b in found.blocks for a in (b.attention, b.cross_attention) if a is not None]
