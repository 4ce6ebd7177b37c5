import itertools
import time

import pytest
import torch
from torch import nn
from train_models import embedder, texts

from lightformers.bundle import Batch
from lightformers.errors import UserError
from lightformers.train import Diverged, Feed, Settings, TrainState, fit


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        return {"logits": self.b(self.a(x).tanh())}


def data(n=16):
    g = torch.Generator().manual_seed(1)
    x = [torch.randn(8, 4, generator=g) for _ in range(n)]
    return [Batch({"x": v}, {"y": v.sum(1, keepdim=True)}) for v in x]


def squared(module, batch):
    return (module(**batch.inputs)["logits"].float() - batch.targets["y"]).pow(2).mean()


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-weights"])
def test_learns_in_every_precision_and_leaves_fp32_weights(precision):
    module = Line().eval()
    result = fit(module, data(), squared, Settings(steps=150, lr=0.02, precision=precision))
    assert result.steps == 150 == len(result.losses)
    assert result.loss < 0.15 * result.losses[0]
    assert all(p.dtype == torch.float32 and p.grad is None for p in module.parameters())
    assert not module.training


def test_same_seed_same_weights():
    runs = []
    for _ in range(2):
        bundle = embedder()
        feed = Feed.of(bundle, [{"text": t} for t in texts(40)], max_tokens=64, seed=3)
        fit(
            bundle.module(),
            feed,
            lambda m, b: m(**b.inputs)["embedding"].float()[:, 0].mean(),
            Settings(steps=4, precision="fp32", dropout=True, seed=3),
        )
        runs.append(weights(bundle.model))
    assert torch.equal(*runs)


def test_frozen_parameters_stay_and_get_no_state():
    module = Line()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    result = fit(module, data(), squared, Settings(steps=5, frozen=("a.*",), precision="fp32"))
    after = module.state_dict()
    assert torch.equal(after["a.weight"], before["a.weight"])
    assert not torch.equal(after["b.weight"], before["b.weight"])
    assert not any("/a." in k for k in result.state.tensors)
    assert all(p.requires_grad for p in module.parameters())


def test_frozen_pattern_without_match_and_all_frozen_are_refused():
    with pytest.raises(UserError, match="no parameter matches"):
        fit(Line(), data(), squared, Settings(steps=1, frozen=("c.*",)))
    with pytest.raises(UserError, match="every parameter is frozen"):
        fit(Line(), data(), squared, Settings(steps=1, frozen=("*",)))


@pytest.mark.parametrize("precision", ["fp32", "bf16-weights"])
def test_resumed_equals_uninterrupted(tmp_path, precision):
    whole = Line()
    one = fit(whole, data(), squared, Settings(steps=10, precision=precision, accumulate=2))
    parts = Line()
    half = Settings(steps=10, precision=precision, accumulate=2, until=0.4)
    first = fit(parts, data(), squared, half)
    assert first.steps == 4
    first.state.save(tmp_path / "state")
    fresh = Line()
    nn.init.zeros_(fresh.a.weight)  # all that matters must come from the state
    second = fit(
        fresh,
        data(),
        squared,
        Settings(steps=10, precision=precision, accumulate=2),
        state=TrainState.load(tmp_path / "state"),
    )
    assert second.steps == 10 and len(second.losses) == 6
    assert second.losses == one.losses[4:]
    assert torch.equal(weights(whole), weights(fresh))


def test_resume_to_a_larger_budget_goes_on():
    module = Line()
    first = fit(module, data(), squared, Settings(steps=30, lr=0.02, precision="fp32"))
    second = fit(module, data(), squared, Settings(steps=120, lr=0.02, precision="fp32"), state=first.state)
    assert second.steps == 120 and second.loss < first.loss


def test_state_of_another_model_is_refused(tmp_path):
    state = fit(Line(), data(), squared, Settings(steps=1, frozen=("a.*",))).state
    with pytest.raises(UserError, match="another model"):
        fit(Line(), data(), squared, Settings(steps=2), state=state)
    with pytest.raises(UserError, match="no training state"):
        TrainState.load(tmp_path)


def test_budgets_of_seconds_and_tokens():
    start = time.monotonic()
    result = fit(Line(), data(), squared, Settings(seconds=0.4, steps=10**9))
    assert 0.3 < result.seconds < 0.6 and time.monotonic() - start < 2.0
    result = fit(Line(), data(), squared, Settings(tokens=33))
    assert result.tokens == 40 and result.steps == 5  # eight a batch: the fifth reaches the budget
    with pytest.raises(UserError, match="budget"):
        Settings()


def test_learning_rate_ends_with_the_budget():
    rates = {}
    for schedule in ("linear", "constant"):
        module, track = Line(), []

        def watched(m, batch, module=module, track=track):
            track.append(weights(module))
            return squared(m, batch)

        settings = Settings(steps=20, warmup=0.0, schedule=schedule, lr=1e-3, precision="fp32")
        fit(module, data(), watched, settings)
        track.append(weights(module))
        rates[schedule] = [float((b - a).abs().max()) for a, b in itertools.pairwise(track)]
    assert rates["linear"][0] == pytest.approx(rates["constant"][0])
    assert rates["linear"][-1] < 0.2 * rates["constant"][-1]


def test_accumulation_equals_a_larger_batch():
    batches = data(4)
    joined = [
        Batch(
            {"x": torch.cat([a.inputs["x"], b.inputs["x"]])},
            {"y": torch.cat([a.targets["y"], b.targets["y"]])},
        )
        for a, b in (batches[:2], batches[2:])
    ]
    one, two = Line(), Line()
    fit(one, batches, squared, Settings(steps=4, accumulate=2, precision="fp32"))
    fit(two, joined, squared, Settings(steps=4, precision="fp32"))
    assert torch.allclose(weights(one), weights(two), atol=1e-6)


def test_a_loss_that_is_not_finite_stops_with_the_last_good_weights():
    module, calls = Line(), []

    def breaks(m, batch):
        calls.append(weights(m))
        loss = squared(m, batch)
        return loss * float("nan") if len(calls) == 3 else loss

    with pytest.raises(Diverged, match="lower learning rate"):
        fit(module, data(), breaks, Settings(steps=9, precision="fp32"))
    assert torch.equal(weights(module), calls[2]) and torch.isfinite(weights(module)).all()


def test_out_of_memory_is_passed_on():
    def full(m, batch):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(RuntimeError, match="can't allocate"):
        fit(Line(), data(), full, Settings(steps=1))


def test_parameters_of_the_objective_are_trained():
    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(1, 1)

        def forward(self, module, batch):
            return (self.map(module(**batch.inputs)["logits"]) - batch.targets["y"]).pow(2).mean()

    objective = Mapped()
    before = weights(objective)
    result = fit(Line(), data(), objective, Settings(steps=3, precision="fp32"))
    assert not torch.equal(before, weights(objective))
    assert "weight/objective.map.weight" in result.state.tensors


def test_progress_is_told():
    events = []
    fit(Line(), data(), squared, Settings(seconds=1.2), events.append)
    assert len(events) >= 2
    assert {"step", "loss", "tokens_per_second", "seconds_left"} <= set(events[0])
    assert events[0]["seconds_left"] > events[-1]["seconds_left"] >= 0
