"""LayerNorm to RMSNorm and CRMSNorm: the algebra, the models, and who is refused."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import steps_world as world
import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress import ToRMSNorm, TrimVocabulary
from lightformers.compress.fold.pre_crmsnorm import drop_input, drop_output, fold, recentre
from lightformers.compress.fold.stream import made_up
from lightformers.errors import ModelError, UserError
from lightformers.manifest import build_from_manifest, write_manifest
from lightformers.parts.zero_mean import CRMSNorm, RMSNorm, ZeroMeanLinear, crms_norm, rms_norm
from lightformers.steps import Recipe, Run

sys.path.insert(0, str(Path(__file__).parents[2] / "anatomy"))
import zoo

KINDS = ("rms", "crms")


def model(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A random model whose norms have gains, whose scales differ, and whose stream has a mean."""
    made = world.model(name) if name in ("gpt2", "vit") else zoo.make(name)
    torch.manual_seed(5)
    with torch.no_grad():
        for path, parameter in made.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            elif "embed" in path or "wte" in path:
                parameter.add_(0.4)
    return made.to(dtype)


def convert(made: nn.Module, kind: str, **fields: bool) -> nn.Module:
    return Recipe([ToRMSNorm(kind, **fields)]).apply(Bundle(made)).model  # type: ignore[arg-type]


def gap(a: nn.Module, b: nn.Module) -> float:
    inputs = made_up(a)
    with torch.no_grad():
        return zoo.difference(*([m(**inputs).logits if "logits" in m(**inputs) else m(**inputs).last_hidden_state] for m in (a, b)))  # fmt: skip


@pytest.mark.parametrize("width", [2, 7, 32])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_norms_are_layer_norm_at_mean_zero(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, width, dtype=torch.float64) * torch.tensor([0.0, 1e-3, 1.0, 10.0, 1e3])[:, None]
    x = (x - x.mean(-1, keepdim=True)).to(dtype)
    want = nn.functional.layer_norm(x.double(), (width,), eps=1e-5)
    close = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {"rtol": 1e-3, "atol": 1e-4}
    for got, wanted in ((rms_norm(x, 1e-5), want), (crms_norm(x[..., :-1], 1e-5), want[..., :-1])):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), wanted, **close)
    literal = torch.stack([v / ((v**2).sum() / width + 1e-5).sqrt() for v in x[0].double()])
    torch.testing.assert_close(rms_norm(x[0].double(), 1e-5), literal)


def test_the_three_forms_of_a_block_agree() -> None:
    torch.manual_seed(0)
    d = 9
    write, read = nn.Linear(4, d).double(), nn.Linear(d, 6).double()
    norm = nn.LayerNorm(d).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, earlier = torch.randn(20, 4).double(), torch.randn(20, d).double() + 3
    want = read(norm(earlier + write(x)))
    weight, bias = recentre(write.weight, write.bias)
    reader, offset = fold(read.weight, read.bias, norm.weight, norm.bias)
    centred = earlier - earlier.mean(-1, keepdim=True)
    stream = centred + nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(nn.functional.linear(rms_norm(stream, norm.eps), reader, offset), want)
    narrow = centred[:, :-1] + nn.functional.linear(x, *drop_output(weight, bias))
    got = nn.functional.linear(crms_norm(narrow, norm.eps), drop_input(reader), offset)
    torch.testing.assert_close(got, want)
    bare = fold(read.weight, None, norm.weight, torch.zeros(d))
    assert bare[1] is None and fold(read.weight, None, None, norm.bias)[1] is not None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    ["gpt2", "vit", "gpt_neox", "phi", "deit", "dinov2", "dinov2:Dinov2Model-swiglu", "gpt2:GPT2Model"],
)
def test_outputs_stay(name: str, kind: str) -> None:
    made = model(name)
    if kind == "crms" and name == "gpt2:GPT2Model":  # without a head nothing can take a narrow last state
        with pytest.raises(ModelError, match="crms form"):
            convert(made, kind)
        return
    new = convert(made, kind)
    assert gap(made, new) < 1e-9
    assert not any(isinstance(m, nn.LayerNorm) for m in new.modules())
    blocks = anatomy.of(new).blocks
    norm = anatomy.get(new, blocks[0].norms[0])
    assert type(norm) is (RMSNorm if kind == "rms" else CRMSNorm) and not list(norm.parameters())
    assert anatomy.of(new).width == anatomy.of(made).width - (kind == "crms")
    assert anatomy.of(new).tied == (anatomy.of(made).tied and (kind, name) != ("crms", "gpt2"))
    single = model(name, torch.float32)
    scale = max(
        float(v.detach().abs().max()) for v in single(**made_up(single)).to_tuple() if isinstance(v, Tensor)
    )
    assert gap(single, convert(single, kind)) < 1e-4 * max(scale, 1)
    unchanged = model(name)
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), unchanged.state_dict().values()))


@pytest.mark.parametrize("kind", KINDS)
def test_generation_is_the_same(kind: str) -> None:
    made = model("gpt2", torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    want, got = (
        m.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
        for m in (made, convert(made, kind))
    )
    assert torch.equal(want, got)


def test_a_mean_in_the_stream_breaks_a_mere_swap_of_norms() -> None:
    made = model("gpt2")
    swapped = copy.deepcopy(made)
    for block in anatomy.of(swapped).blocks:
        for path in block.norms:
            old = anatomy.get(swapped, path)
            new = RMSNorm(world.WIDTH, old.eps)
            new.weight, new.bias = old.weight, old.bias
            anatomy.surgery.replace(swapped, path, new)
    assert gap(made, swapped) > 0.1 > 1e-9 > gap(made, convert(made, "rms"))


def test_training_goes_on_as_with_layer_norm() -> None:
    plain = world.model("gpt2").double()
    frozen = [n for block in anatomy.of(plain).blocks for n in block.norms]
    for path in frozen:  # gains that are folded away cannot be trained
        norm = anatomy.get(plain, path)
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
        norm.requires_grad_(False)
    twins = [plain, convert(plain, "rms", keep_zero_mean=True), convert(plain, "rms")]
    writers = [m for m in twins[1].modules() if isinstance(m, ZeroMeanLinear)]
    assert len(writers) == 2 * world.DEPTH
    ids = torch.randint(4, 300, (4, 12), generator=torch.Generator().manual_seed(0))
    curves: list[list[float]] = []
    for twin in twins:
        twin.train(False)
        optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.3)
        curve = []
        for _ in range(15):
            logits = twin(input_ids=ids, use_cache=False).logits[:, :-1]
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(float(loss.detach()))
        curves.append(curve)
    assert curves[0][-1] < 0.8 * curves[0][0]
    assert max(abs(a - b) for a, b in zip(curves[0], curves[1])) < 1e-8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["gpt2", "vit", "dinov2"])
def test_saved_and_loaded(name: str, kind: str, tmp_path: Path) -> None:
    new = convert(model(name, torch.float32), kind)
    write_manifest(new, tmp_path)
    again = build_from_manifest(tmp_path, new.config)
    assert gap(new, again) == 0.0
    zoo.outputs(again, made_up(again))[0].square().sum().backward()
    assert all(p.grad is not None for n, p in again.named_parameters() if "mask_token" not in n)


def test_zero_mean_layers_are_saved(tmp_path: Path) -> None:
    new = convert(model("gpt2", torch.float32), "rms", keep_zero_mean=True)
    write_manifest(new, tmp_path)
    assert gap(new, build_from_manifest(tmp_path, new.config)) == 0.0


def test_the_vocabulary_can_still_be_trimmed() -> None:
    original = world.bundle("gpt2")
    texts = {"train": [{"text": t} for t in world.TEXTS[:40]]}
    recipe = [ToRMSNorm("crms"), TrimVocabulary(characters="corpus")]
    trimmed = Recipe(recipe).apply(original, world.World(splits=texts), Run(dtype="fp32"))
    row = [texts["train"][0]]
    kept = torch.tensor(trimmed.origin.vocabulary)
    assert len(kept) < 300
    torch.testing.assert_close(
        world.outputs(trimmed, row), world.outputs(original, row)[..., kept], rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bert", "post-norm"), ("roberta", "post-norm"), ("albert", "post-norm"), ("distilbert", "post-norm"),
        ("llama", "no LayerNorm"), ("t5", "several stacks"), ("bart", "several stacks"), ("opt", "no dropout"),
        ("clip", "several stacks"), ("wav2vec2", "input_values"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_others_are_refused_untouched(name: str, reason: str, kind: str) -> None:
    made = zoo.make(name)
    before = {k: v.clone() for k, v in made.state_dict().items()}
    with pytest.raises(ModelError, match=reason):
        ToRMSNorm(kind).apply(Bundle(made), None, Run())  # type: ignore[arg-type]
    after = made.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(v, after[k]) for k, v in before.items())


def test_an_unnormalised_reader_is_refused() -> None:
    """A pre-norm vit whose second block lets its queries read the stream itself."""
    made = model("vit")
    made.vit.layers[1].layernorm_before = nn.LayerNorm(32).double()
    block = made.vit.layers[1]
    stream: list[Tensor] = []
    block.register_forward_pre_hook(lambda m, args: stream.append(args[0]))
    block.attention.q_proj.register_forward_pre_hook(lambda m, args: (stream[-1],))
    with pytest.raises(ModelError, match="reads the residual stream itself"):
        ToRMSNorm().apply(Bundle(made), None, Run())


def test_bad_fields() -> None:
    with pytest.raises(UserError, match="kind"):
        ToRMSNorm("layer")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="keep_zero_mean"):
        ToRMSNorm("crms", keep_zero_mean=True)
