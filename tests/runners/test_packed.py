import numpy as np
import pytest
import torch
from runner_models import bundle, per_example, texts

from lightformers.errors import ModelError
from lightformers.parts.packed import attend, groups_of, packed
from lightformers.runners import build
from lightformers.steps import Deploy

PACKABLE = [
    *(
        "bert",
        "bert-classifier",
        "bert-tokens",
        "roberta",
        "roberta-classifier",
        "electra",
        "electra-classifier",
    ),
    *(
        "albert",
        "distilbert",
        "distilbert-classifier",
        "gpt2",
        "gpt2-classifier",
        "llama",
        "llama-classifier",
    ),
    *("opt", "qwen3", "gemma", "phi", "mistral", "gpt_neox", "modernbert"),
]


@pytest.mark.parametrize("name", PACKABLE)
def test_packed_equals_padded(name):
    mine = bundle(name)
    padded = build(mine, Deploy(batch_size=4))(texts(), per_example)
    runner = build(mine, Deploy(batching="packed", batch_size=6))
    for old, new in zip(padded, runner(texts(), per_example)):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=2e-5)
    assert runner.module.packed_difference <= 1e-4


def test_the_probe_can_fail():
    """A model whose positions run on through the row must be refused, not run wrongly."""
    mine = bundle("bert")
    embeddings = type(mine.model.embeddings)

    class Ignorant(embeddings):
        def forward(self, input_ids=None, position_ids=None, **options):
            return super().forward(input_ids=input_ids, **options)

    mine.model.embeddings.__class__ = Ignorant
    with pytest.raises(ModelError, match="bert does not give the same outputs packed"):
        packed(mine.module())


@pytest.mark.parametrize("name", ["mpnet", "t5"])
def test_models_that_bypass_the_interface_are_refused_by_name(name):
    with pytest.raises(ModelError, match=rf"{name} cannot run packed.*sorted"):
        build(bundle(name), Deploy(batching="packed"))


def test_the_original_is_left_as_it_was_and_weights_are_shared():
    mine = bundle("bert-classifier")
    before = mine.model.config._attn_implementation
    twin = packed(mine.model)
    assert mine.model.config._attn_implementation == before
    assert type(mine.model.bert).__name__ == "BertModel"
    assert twin.classifier.weight is mine.model.classifier.weight


def test_packed_bf16_is_close():
    mine = bundle("bert")
    exact = build(mine, Deploy())(texts(), per_example)
    rough = build(mine, Deploy(precision="bf16", batching="packed"))(texts(), per_example)
    assert min(float(a @ b) for a, b in zip(exact, rough)) > 0.99


def test_attention_of_each_run_against_the_plain_formula():
    torch.manual_seed(0)
    lengths = [5, 5, 3, 1]
    q, k, v = torch.randn(3, 1, 4, sum(lengths), 8)
    from lightformers.parts.packed import Runs, _running

    for causal, window in ((False, None), (True, None), (False, 3), (True, 2)):
        with _running(Runs(groups_of(lengths))):
            out, _ = attend(
                torch.nn.Identity(), q, k, v, scaling=0.3, is_causal=causal, sliding_window=window
            )
        start = 0
        for n in lengths:
            s = slice(start, start + n)
            at = torch.arange(n)
            distance = at[:, None] - at
            seen = torch.ones(n, n, dtype=torch.bool) if window is None else distance.abs() < window
            seen = seen & (distance >= 0) if causal else seen
            scores = (q[0, :, s] @ k[0, :, s].mT * 0.3).masked_fill(~seen, -torch.inf)
            expected = (scores.softmax(-1) @ v[0, :, s]).transpose(0, 1)
            torch.testing.assert_close(out[0, s], expected)
            start += n


def test_groups_are_neighbours_of_equal_length():
    assert groups_of([5, 5, 3, 1, 1, 1]) == ((0, 2, 5), (10, 1, 3), (13, 3, 1))


def test_what_cannot_be_honoured_is_refused():
    from lightformers.parts.packed import Runs, _running

    x = torch.randn(1, 2, 4, 8)
    with _running(Runs(groups_of([4]))) as _, pytest.raises(ModelError, match="softcap"):
        attend(torch.nn.Identity(), x, x, x, softcap=30.0)
