"""Structured pruning: scores, scopes, repair, and the four steps."""

from __future__ import annotations

import pytest
import steps_world as world
import torch

from lightformers import anatomy
from lightformers.compress import DropBlocks, PruneChannels, PruneHeads, PruneWidth, calibration
from lightformers.compress.prune import scores
from lightformers.compress.prune.leave_out import removal_order
from lightformers.compress.prune.reconstruct import least_squares, removed_mean
from lightformers.compress.prune.scopes import across, best, share, within
from lightformers.errors import DataError, ModelError, UserError
from lightformers.steps import Recipe, Run

RUN = Run(dtype="fp32")


def test_head_importance_is_the_size_of_the_contribution() -> None:
    torch.manual_seed(0)
    a, output = torch.randn(50, 3 * 4), torch.randn(7, 12)
    literal = [
        (a[:, h * 4 : h * 4 + 4] @ output[:, h * 4 : h * 4 + 4].T).square().sum(1).mean().sqrt()
        for h in range(3)
    ]
    torch.testing.assert_close(scores.head_importance(a.T @ a / 50, output, 3), torch.stack(literal))
    assert scores.in_groups(torch.tensor([1.0, 2, 3, 4]), 2).tolist() == [3, 7]


def test_output_distance() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(6, 5), torch.randn(6, 5)
    assert scores.output_distance(a, a) == pytest.approx(0, abs=1e-6)
    expected = torch.nn.functional.kl_div(b.log_softmax(-1), a.softmax(-1), reduction="batchmean")
    assert scores.output_distance(b, a, distribution=True) == pytest.approx(float(expected), rel=1e-5)


def test_scopes() -> None:
    assert [share(k, 100, 16) for k in (1.0, 0.5, 0.01, 0.99)] == [100, 48, 16, 96]
    assert share(0.5, 12, 16) == 6 and share(0.01, 12) == 1
    assert best(torch.tensor([1.0, 1.0, float("nan"), 3.0]), 2) == [0, 3]
    assert within([torch.tensor([1.0, 2]), torch.tensor([2.0, 1])], [1, 1]) == [[1], [0]]
    # of two blocks at different scales, the one whose channels are all alike keeps more
    even, peaked = torch.ones(8), torch.tensor([100.0] + [0.01] * 7)
    assert [len(k) for k in across([even, peaked], 9)] == [8, 1]
    assert [len(k) for k in across([even, peaked], 8, multiple=4)] == [8, 4]
    for wrong in (0, 1.1, -1, float("nan")):
        with pytest.raises(UserError, match="share"):
            share(wrong, 10)


def test_least_squares_is_the_regression_on_what_is_left() -> None:
    torch.manual_seed(0)
    a = torch.randn(400, 3) @ torch.randn(3, 9) + 0.1 * torch.randn(400, 9) + 2.0
    weight, keep = torch.randn(5, 9), [0, 2, 5, 8]
    gram, mean = a.T @ a / 400, a.mean(0)
    fitted, bias = least_squares(weight, keep, gram, mean, ridge=1e-6)
    design = torch.cat([a[:, keep], torch.ones(400, 1)], 1)
    literal = torch.linalg.lstsq(design.double(), (a @ weight.T).double())[0].T.float()
    torch.testing.assert_close(fitted, literal[:, :-1], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(bias, literal[:, -1], rtol=2e-3, atol=5e-3)
    no_bias, none = least_squares(weight, keep, gram, ridge=1e-6)
    literal = torch.linalg.lstsq(a[:, keep].double(), (a @ weight.T).double())[0].T.float()
    torch.testing.assert_close(no_bias, literal, rtol=2e-3, atol=2e-3)
    assert none is None


def test_least_squares_limits() -> None:
    torch.manual_seed(0)
    a, weight = torch.randn(100, 6) + 1, torch.randn(4, 6)
    gram, mean = a.T @ a / 100, a.mean(0)
    same, bias = least_squares(weight, range(6), gram, mean)
    assert torch.equal(same, weight) and not bias.any()
    # a heavy ridge leaves the old weights, and only the mean of what is gone moves into the bias
    stiff, bias = least_squares(weight, [1, 4], gram, mean, ridge=1e9)
    torch.testing.assert_close(stiff, weight[:, [1, 4]])
    torch.testing.assert_close(bias, removed_mean(weight, [1, 4], mean), rtol=1e-4, atol=1e-4)
    # data that says nothing (all zero) leaves them too, and a singular system is solved
    nothing, _ = least_squares(weight, [1, 4], torch.zeros(6, 6))
    torch.testing.assert_close(nothing, weight[:, [1, 4]])
    twice = torch.randn(100, 1).expand(100, 6)
    singular, _ = least_squares(weight, [1, 4], twice.T @ twice / 100, ridge=0.0)
    torch.testing.assert_close(twice[:, [1, 4]] @ singular.T, twice @ weight.T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", world.FAMILIES)
@pytest.mark.parametrize(
    "step", [DropBlocks(keep=world.DEPTH), PruneChannels(1.0), PruneHeads(1.0), PruneWidth(1.0)], ids=lambda s: type(s).__name__
)  # fmt: skip
def test_keeping_everything_changes_nothing(step, family: str) -> None:
    original = world.bundle(family)
    assert torch.equal(
        world.outputs(Recipe([step]).apply(original, world.task(family), RUN)), world.outputs(original)
    )


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "vit"])
@pytest.mark.parametrize("uniform", [True, False])
def test_channels_that_are_zero_go_first(family: str, uniform: bool) -> None:
    original = world.bundle(family)
    live = [6, 14, 30, 10] if not uniform else [12] * 4
    for block, count in zip(anatomy.of(original.model).blocks, live):
        weight = anatomy.linear(original.model, block.feed_forward.down)[0]
        dead = torch.randperm(world.FFN)[count:]
        with torch.no_grad():
            weight[:, dead] = 0
    step = PruneChannels(
        sum(live) / (4 * world.FFN), round_to=1, uniform=uniform, reconstruct=False, compensate=False
    )
    # across blocks, the scores are only comparable if no live channel is far below its block's mean
    step = (
        step
        if uniform
        else PruneChannels(0.6, round_to=2, uniform=False, reconstruct=False, compensate=False)
    )
    edited = Recipe([step]).apply(original, world.task(family), RUN)
    torch.testing.assert_close(world.outputs(edited), world.outputs(original), rtol=1e-4, atol=1e-5)
    widths = [b.feed_forward.width for b in anatomy.of(edited.model).blocks]
    assert widths == live if uniform else sum(widths) < 4 * world.FFN
    assert anatomy.native_reasons(edited.model) == [] if uniform else True


def _copy_halves(model: torch.nn.Module) -> None:
    """Plant redundancy: the second half of all channels and heads copies the first, and is heard more softly."""
    for block in anatomy.of(model).blocks:
        a, ffn = block.attention, block.feed_forward
        pairs = [(p, world.FFN // 2) for p in (ffn.up, ffn.gate) if p]
        pairs += [(p, world.WIDTH // 2) for p in (a.q, a.k, a.v) if p]
        with torch.no_grad():
            for path, half in pairs:
                for tensor in anatomy.linear(model, path):
                    if tensor is not None:
                        tensor[half:] = tensor[:half]
            for path in (ffn.down, a.o):
                weight = anatomy.linear(model, path)[0]
                weight[:, weight.shape[1] // 2 :] *= 0.03


@pytest.mark.parametrize("family", ["bert", "gpt2", "vit", "t5"])
def test_repair_recovers_what_is_redundant(family: str) -> None:
    """On texts that calibration did not see."""
    original, task = world.bundle(family), world.task(family)
    _copy_halves(original.model)
    first = anatomy.of(original.model).blocks[0]  # what enters it is the same before and after the cut

    def given(bundle, path: str) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        module = anatomy.get(bundle.model, path)
        handle = module.register_forward_hook(lambda m, args, out: seen.append(out.detach()))
        world.outputs(bundle)
        handle.remove()
        return seen[0]

    def error(step, path: str) -> float:
        return float((given(Recipe([step]).apply(original, task, RUN), path) - given(original, path)).norm())

    down = first.feed_forward.down
    bare = error(PruneChannels(0.5, reconstruct=False, compensate=False), down)
    assert error(PruneChannels(0.5, reconstruct=True), down) < 0.2 * bare
    if family != "t5":  # no biases there, so there is nothing to put a mean into
        assert error(PruneChannels(0.5, reconstruct=False, compensate=True), down) < bare
    if family in ("bert", "vit"):  # gpt2's projections are fused, t5's heads differ by their position bias
        output = first.attention.o
        bare = error(PruneHeads(0.5, reconstruct=False), output)
        assert error(PruneHeads(0.5, reconstruct=True), output) < 0.2 * bare


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "vit", "t5"])
def test_heads_that_are_zero_go_first(family: str) -> None:
    original = world.bundle(family)
    for place, block in enumerate(anatomy.of(original.model).blocks):
        a = block.attention
        size, group = a.head_dim, a.heads // a.kv_heads
        # t5 shares its position bias, so its heads must be the same in all blocks
        dead = (1 if family == "t5" else place) % a.kv_heads
        with torch.no_grad():
            anatomy.linear(original.model, a.o)[0][:, dead * group * size : (dead + 1) * group * size] = 0
    kv = anatomy.of(original.model).blocks[0].attention.kv_heads
    edited = Recipe([PruneHeads((kv - 1) / kv)]).apply(original, world.task(family), RUN)
    assert {b.attention.kv_heads for b in anatomy.of(edited.model).blocks} == {kv - 1}
    torch.testing.assert_close(world.outputs(edited), world.outputs(original), rtol=1e-4, atol=1e-5)


def test_width_that_is_never_used_goes_first() -> None:
    original = world.bundle("llama")
    dead = [1, 5, 8, 9, 20, 21, 30, 31]
    with torch.no_grad():
        for name, parameter in original.model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter[dead] = 0
            if name.endswith("embed_tokens.weight"):
                parameter[:, dead] = 0
    edited = Recipe([PruneWidth(0.75)]).apply(original, world.task(), RUN)
    left = [i for i in range(world.WIDTH) if i not in dead]
    assert torch.equal(
        edited.model.model.embed_tokens.weight, original.model.model.embed_tokens.weight[:, left]
    )
    assert anatomy.of(edited.model).width == 24


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "vit", "t5"])
@pytest.mark.parametrize("score", ["output", "influence"])
def test_a_block_that_does_nothing_is_dropped_first(family: str, score: str) -> None:
    original = world.bundle(family)
    block = anatomy.of(original.model).blocks[2]
    with torch.no_grad():
        for path in (block.attention.o, block.feed_forward.down):
            for tensor in anatomy.linear(original.model, path):
                if tensor is not None:
                    tensor.mul_(1e-4)
        if family == "bert":  # norms follow the sums: make them keep what comes in
            for other in anatomy.of(original.model).blocks:
                for norm in other.norms:
                    anatomy.get(original.model, norm).weight.fill_(1.0)
                    anatomy.get(original.model, norm).bias.zero_()
    edited = Recipe([DropBlocks(keep=3, score=score)]).apply(original, world.task(family), RUN)
    assert edited.origin.blocks["encoder" if family in ("bert", "vit", "t5") else "decoder"] == (0, 1, 3)
    torch.testing.assert_close(world.outputs(edited), world.outputs(original), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_leaving_out_measures_what_cutting_does(family: str) -> None:
    """The order found by skipping blocks is the order of the distances of models that were really cut."""
    original, task = world.bundle(family), world.task(family)
    blocks = anatomy.of(original.model).blocks
    order = removal_order(original, task, blocks, 2, 32, RUN)
    rows = task.calibration(32)

    def distance(gone: list[int]) -> float:
        cut = Recipe([DropBlocks(blocks=tuple(i for i in range(4) if i not in gone))]).apply(original)
        total = count = 0.0
        for batch in calibration.batches(original, rows):
            with torch.no_grad():
                new, old = cut.module()(**batch.inputs), original.module()(**batch.inputs)
            if "logits" in old:
                mask = batch.inputs["attention_mask"]
                pair = [calibration.real_tokens(o["logits"], mask) for o in (new, old)]
            else:
                pair = [new["embedding"], old["embedding"]]
            total += scores.output_distance(*pair, distribution="logits" in old) * len(pair[0])
            count += len(pair[0])
        return total / count

    first = min(range(4), key=lambda i: distance([i]))
    second = min((i for i in range(4) if i != first), key=lambda i: distance([first, i]))
    assert order == [first, second]
    # asking for more goes on where it stopped, and the model is as it was
    asked = task.asked
    assert removal_order(original, task, blocks, 2, 32, RUN) == order and task.asked == asked
    assert removal_order(original, task, blocks, 3, 32, RUN)[:2] == order
    assert all("forward" not in vars(m) for m in original.model.modules())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in original.model.modules())


def test_origin_is_followed_through_several_cuts() -> None:
    edited = Recipe([DropBlocks(blocks=(0, 2, 3)), DropBlocks(blocks=(1, 2))]).apply(world.bundle("gpt2"))
    assert edited.origin.blocks == {"decoder": (2, 3)}


def test_bad_input_is_refused() -> None:
    bert, task = world.bundle(), world.task()
    for make, words in (
        (lambda: DropBlocks(), "needs keep"),
        (lambda: DropBlocks(keep=0), "at least 1"),
        (lambda: DropBlocks(keep=2, score="x"), "not one of"),
        (lambda: PruneChannels(0.0), "share"),
        (lambda: PruneChannels(0.5, score="x"), "not one of"),
        (lambda: PruneHeads(1.5), "share"),
    ):
        with pytest.raises(UserError, match=words):
            make()
    for step, words in (
        (DropBlocks(keep=9), "4 blocks, 9"),
        (DropBlocks(blocks=(0, 7)), "numbered 0 to 3"),
        (DropBlocks(keep=2, stack="decoder"), "no stack"),
    ):
        with pytest.raises(ModelError, match=words):
            step.apply(bert.copy(), task, RUN)
    with pytest.raises(DataError, match="no examples"):
        PruneChannels(0.5).apply(bert.copy(), world.World(splits={"train": []}, fingerprint="empty"), RUN)
    uneven = Recipe([PruneChannels(0.5, uniform=False, round_to=2, score="random")]).apply(bert, task, RUN)
    widths = {b.feed_forward.width for b in anatomy.of(uneven.model).blocks}
    if len(widths) > 1:
        with pytest.raises(ModelError, match="differ already"):
            PruneChannels(0.5).apply(uneven, task, RUN)


def test_weights_alone_need_no_task() -> None:
    bert = world.bundle()
    edited = Recipe(
        [
            PruneChannels(0.5, score="magnitude", reconstruct=False, compensate=False),
            PruneHeads(0.5, "magnitude", False),
        ]
    ).apply(bert)
    assert edited.parameters < bert.parameters
