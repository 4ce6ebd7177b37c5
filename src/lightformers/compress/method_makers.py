"""From a wanted size to steps: one function per row of `methods.METHODS`, (ratio of the blocks' bytes, bundle) -> steps.

A ratio that cannot be reached raises UserError here, before anything is cut. Settings that cost time (examples,
gradients, candidates) are smaller than the steps' own defaults, so that all methods can be tried in one sitting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightformers import anatomy, compress
from lightformers.bundle import Bundle
from lightformers.compress import weights
from lightformers.compress.prune.minitron import TOLERANCE as MINITRON
from lightformers.compress.prune.pack import PATTERNS
from lightformers.errors import UserError
from lightformers.parts.sparse import place_bits
from lightformers.steps import Step

Steps = Sequence[Step]


def drop_blocks(ratio: float, bundle: Bundle) -> Steps:
    """Whole blocks, from every stack alike."""
    stacks = anatomy.of(bundle.model).stacks
    return [compress.DropBlocks(keep=weights.blocks_that_fit(s.depth, ratio), stack=s.name) for s in stacks]


def prune_channels(ratio: float, bundle: Bundle) -> Steps:
    """Channels of the feed-forwards only, so the ratio must leave room for attention."""
    held = weights.weights_of(bundle.model)
    widths = [b.feed_forward.width for b in anatomy.of(bundle.model).blocks if b.feed_forward]
    keep = held.share(ratio, held.ffn, "the feed-forwards")
    return [compress.PruneChannels(keep=keep, round_to=max(1, min(16, min(widths) // 16)))]


def prune_heads(ratio: float, bundle: Bundle) -> Steps:
    """Heads only, so the ratio must leave room for the feed-forwards."""
    held = weights.weights_of(bundle.model)
    keep = held.share(ratio, held.attention, "attention's projections")
    found = anatomy.of(bundle.model).blocks
    groups = min(a.kv_heads for b in found for a in (b.attention, b.cross_attention) if a)
    count = int(keep * groups * (1 + weights.TOLERANCE) + 1e-9)
    if count < 1:
        raise UserError(
            f"one of {groups} heads (or groups of keys and values) must stay, which leaves attention more than the "
            f"{keep:.0%} that fit"
        )
    return [compress.PruneHeads(keep=min(count / groups, 1.0))]


def prune_width(ratio: float, bundle: Bundle) -> Steps:
    """The hidden size, at which the blocks shrink nearly quadratically in some families and linearly in others."""
    return [compress.PruneWidth(keep=weights.width_that_fits(bundle, ratio) / anatomy.of(bundle.model).width)]


def minitron(ratio: float, bundle: Bundle) -> Steps:
    """The best shape of all that have so many parameters; the hidden size stays, heads where plain ones reload."""
    found = anatomy.of(bundle.model)
    held = anatomy.parameters_of(bundle.model, [b.path for b in found.blocks])
    share = held / bundle.parameters
    # what is found may be larger than the target: then too the blocks shall be small enough
    most = 1 - (1 - ratio * (1 + weights.TOLERANCE)) * share
    target = min(1 - (1 - ratio) * share, most / (1 + MINITRON))
    heads = 0.5 if found.native.heads is None else 1.0
    return [
        compress.Minitron(
            blocks=ratio, heads=heads, channels=0.25, target=target, examples=64, round_to=_rounding(bundle)
        )
    ]


def _rounding(bundle: Bundle) -> int:
    widths = [b.feed_forward.width for b in anatomy.of(bundle.model).blocks if b.feed_forward]
    return max(1, min(16, min(widths, default=16) // 16))


def vtrans(ratio: float, bundle: Bundle) -> Steps:
    """Half of the budget learns the gates, half recovers, as the paper does."""
    held = weights.weights_of(bundle.model)
    gone = 1 - held.share(ratio, held.matrices, "the matrices")
    round_to = max(1, min(8, _rounding(bundle)))
    return [
        compress.VTrans(sparsity=gone, share=0.5, round_to=round_to),
        compress.Recover(share=0.5),
    ]


def axformer(ratio: float, bundle: Bundle) -> Steps:
    """Removes what the loss does not mind, however much that is: the ratio does not steer it."""
    return [compress.AxFormer(examples=64)]


def sparsity(ratio: float, bundle: Bundle) -> float:
    """Share of zeros at which values and a bitmap of their places come to `ratio`."""
    held = weights.weights_of(bundle.model)
    kept = held.share(ratio, held.matrices, "the matrices") - 1 / (8 * held.element)
    if kept <= 0:
        raise UserError(f"a bitmap of places alone takes more than {ratio:.0%} of the blocks")
    return 1 - kept


def essential_sparsity(ratio: float, bundle: Bundle) -> Steps:
    """The smallest weights of all layers together, at once."""
    return [compress.EssentialSparsity(sparsity(ratio, bundle)), compress.PackSparse()]


def n_of_m(ratio: float, bundle: Bundle) -> Steps:
    """The densest pattern that fits: 2 of 4 at one half, 1 of 4 at a quarter."""
    held = weights.weights_of(bundle.model)
    share = held.share(ratio, held.matrices, "the matrices")
    columns = math.gcd(*(into for _, into in held.shapes.values()))
    # 1 of 2 holds what 2 of 4 does and leaves less choice
    stored = {
        (n, m): n / m * (1 + place_bits(m) / (8 * held.element))
        for n, m in PATTERNS
        if m > 2 and columns % m == 0
    }
    if not stored:
        raise UserError(f"groups of 4 or 8 do not divide the inputs of all layers (in common: {columns})")
    fitting = {pattern: size for pattern, size in stored.items() if size <= (1 + weights.TOLERANCE) * share}
    if not fitting:
        raise UserError(
            f"the sparsest pattern stores {min(stored.values()):.0%} of a matrix, {share:.0%} are wanted"
        )
    best = max(fitting, key=lambda pattern: fitting[pattern])
    return [compress.EssentialSparsity(n_of_m=best), compress.PackSparse()]


def obert(ratio: float, bundle: Bundle) -> Steps:
    """One-shot, on fewer gradients than the paper takes."""
    return [
        compress.OptimalBertSurgeon(sparsity(ratio, bundle), gradients=64, batch=4),
        compress.PackSparse(),
    ]


def gradual_magnitude(ratio: float, bundle: Bundle) -> Steps:
    """Three rounds with distillation after each."""
    gone = sparsity(ratio, bundle)
    return [
        compress.GradualMagnitude(gone, rounds=3, initial=gone / 2, epochs=1.0),
        compress.PackSparse(),
    ]


def dsee(ratio: float, bundle: Bundle) -> Steps:
    """Query and value matrices keep their dense form with the update beside it, so only the feed-forwards are packed."""
    held = weights.weights_of(bundle.model)
    smallest = min(min(shape) for shape in held.shapes.values())
    rank, entries = min(16, max(1, smallest // 8)), min(64, smallest)
    attentions = [a for b in anatomy.of(bundle.model).blocks for a in (b.attention, b.cross_attention) if a]
    updated = [p for a in attentions for p in ((a.q, a.v or a.qkv) if a.q else (a.qkv,)) if p]
    # two thin matrices, the free entries, and two places of four bytes for each of these
    sizes = [held.element * (rank * sum(held.shapes[p]) + entries) + 8 * entries for p in updated]
    kept = held.share(ratio - sum(sizes) / held.blocks, held.ffn, "the feed-forwards") - 1 / (
        8 * held.element
    )
    if kept <= 0:
        raise UserError(f"a bitmap of places alone takes more than {ratio:.0%} of the blocks")
    step = compress.DSEE(rank=rank, entries=entries, sparsity=1 - kept)
    return [step, compress.PackSparse(where=("ffn",))]


def low_rank(ratio: float, bundle: Bundle) -> Steps:
    """The same share of the smaller side everywhere, least error on data."""
    held = weights.weights_of(bundle.model)
    share = held.share(ratio, held.matrices, "the matrices")
    return [compress.LowRank(rank=weights.low_rank_share(list(held.shapes.values()), share))]


def greenformers(ratio: float, bundle: Bundle) -> Steps:
    """The same share of each layer's break-even rank."""
    held = weights.weights_of(bundle.model)
    return [compress.Greenformers(rank=min(held.share(ratio, held.matrices, "the matrices"), 0.999))]


def pela(ratio: float, bundle: Bundle) -> Steps:
    """Every matrix by the same factor."""
    held = weights.weights_of(bundle.model)
    return [compress.Pela(ratio=1 / held.share(ratio, held.matrices, "the matrices"))]


#: Bytes of matrices up to which dsformer's factors are found anew while it trains: beyond, one such search takes longer
#: than all the training of a comparison (half a minute for all-MiniLM-L6-v2 on one core).
REFRESHED = 4e6


def dsformer(ratio: float, bundle: Bundle) -> Steps:
    """Bases of 64 atoms, or of fewer where the matrices are small: a basis must be much smaller than its column block.

    Small models train through the factorisation as in the paper; larger ones are factorised once and then trained.
    """
    held = weights.weights_of(bundle.model)
    rows = min(out for out, _ in held.shapes.values())
    atoms = max(2, min(64, 2 ** int(math.log2(max(rows // 4, 2)))))
    factor = max(1 / held.share(ratio, held.matrices, "the matrices"), 1.001)
    if held.matrices > REFRESHED:
        return [compress.DenseSparse(ratio=factor, atoms=atoms, method="fixed", iterations=1)]
    return [compress.DenseSparse(ratio=factor, atoms=atoms)]


def minilm(ratio: float, bundle: Bundle) -> Steps:
    """A shallower student that starts from the teacher's blocks; its outputs are brought back by recovery."""
    return [
        *drop_blocks(ratio, bundle), compress.MiniLM(share=0.5), compress.Recover(share=0.5)
    ]  # fmt: skip


def fusegpt(ratio: float, bundle: Bundle) -> Steps:
    """Blocks that go live on in their neighbours."""
    depth = len(anatomy.of(bundle.model).blocks)
    kept = weights.blocks_that_fit(depth, ratio)
    # a hair less than the share: it is rounded up to whole blocks
    return [compress.FuseBlocks(rate=(depth - kept - 1e-6) / depth, examples=64)]


def to_rms_norm(ratio: float, bundle: Bundle) -> Steps:
    """Changes no output and hardly the size; the ratio does not steer it."""
    return [compress.ToRMSNorm()]


def bits_that_fit(ratio: float, bundle: Bundle, choices: tuple[int, ...] = (8, 4)) -> int:
    """The most bits of a weight, of descending choices, at which the matrices come to `ratio`."""
    held = weights.weights_of(bundle.model)
    share = held.share(ratio, held.matrices, "the matrices")
    for bits in choices:
        if bits / (8 * held.element) <= (1 + weights.TOLERANCE) * share:
            return bits
    raise UserError(
        f"{choices[-1]} bits of a weight are more than the {share:.0%} of its {8 * held.element} that fit"
    )


def llm_int8(ratio: float, bundle: Bundle) -> Steps:
    """Eight bits, whatever more the ratio would allow."""
    bits_that_fit(ratio, bundle, (8,))
    return [compress.LLMInt8()]


def float_quantize(ratio: float, bundle: Bundle) -> Steps:
    """Four-bit floats (the paper's), or eight-bit ones where the ratio allows."""
    from lightformers.parts.number_formats import float_formats

    names = float_formats(bits_that_fit(ratio, bundle))
    return [compress.FloatQuantize(names, names, candidates=20, rounds=1, rows=256)]


def blockwise_quantize(ratio: float, bundle: Bundle) -> Steps:
    """Eight or four bits of a weight, eight of everything that flows."""
    return [compress.BlockwiseQuantize(bits=bits_that_fit(ratio, bundle))]


def teacher_intervention(ratio: float, bundle: Bundle) -> Steps:
    """Integers of eight or four bits where the ratio allows, else ternary weights (the paper's)."""
    try:
        form = f"int{bits_that_fit(ratio, bundle)}"
    except UserError:
        form = "ternary"
    return [compress.TeacherIntervention(weights=form)]


def trim_vocabulary(ratio: float, bundle: Bundle) -> Steps:
    """What the task's texts do not use goes; no block is touched, so the ratio does not steer it."""
    return [compress.TrimVocabulary(multiple=8)]
