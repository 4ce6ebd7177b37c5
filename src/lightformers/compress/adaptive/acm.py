"""Adaptive computation modules: layers become chains of small learners, and a gate runs as many as a token needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle
from lightformers.compress.adaptive import gating
from lightformers.compress.adaptive.sites import Site, by_sample, install, sites, valid
from lightformers.compress.adaptive.usage import recording
from lightformers.compress.distill import Recover, common
from lightformers.compress.distill.recover import imitation
from lightformers.errors import ModelError, UserError
from lightformers.parts.adaptive import AdaptiveModule
from lightformers.steps import Run, Stage
from lightformers.train import Feed, Settings, TrainResult, fit

Pairs = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class AdaptiveModules:
    """Adaptive computation modules (Wójcik et al., 2023, arXiv 2312.10193): as many learners per token as it needs.

    Three phases. Chains of `learners` small networks learn what the replaced layers do, each partial sum as well as the
    whole; gates learn after how many of them the next one would bring little; then everything trains together, on the
    distillation from the run's teacher, until about `budget` of the learners' cost is used.

    budget: share of the cost of all learners that is aimed at, in (0, 1]. where: "ffn", "attention" (each projection on
    its own) or both. learners: of every chain; with `factor` 1 all together cost what the layer did.
    threshold: a gate is taught to stop where the error is less than so many times that of one learner more.
    temperature: of the Gumbel softmax. spend, entropy, diversity: weights of the distance to the budget, of the entropy
    of the choices within an example, and of their difference between examples.
    lr, gate_lr, tune_lr: of the three phases. epochs: of the phases where the run has no budget; shares: of the run's
    budget for each of them. labels: weight of the task's loss in the third phase, where the run uses labels.
    seconds, share, max_tokens: as in `Recover`.

    Tokens that are padding count nowhere in training. Deviations: the last phase distils the original's outputs (the
    paper: cross-entropy of labels, mixup and cutmix); gates have an activation between their layers; a gated
    feed-forward or a projection between two sizes gets the learners of equal cost; the third loss compares shares of
    learners (its code: mean choice over learners plus one). Projections use one learner at least. The gates' cost comes
    on top of the budget, and in use a gate takes its likeliest choice where it drew one in training, so that the cost can
    miss the budget: `usage` counts it. A later `Recover` trains the learners at the choices the gates make. Needs
    lightformers to load, and saves time only where learners are large: tokens are gathered by plain torch operations.
    """

    budget: float = 0.5
    where: tuple[str, ...] = ("ffn",)
    learners: int = 4
    factor: float = 1.0
    hidden: int = 16
    threshold: float = 1.2
    temperature: float = 0.8
    spend: float = 0.1
    entropy: float = 0.05
    diversity: float = 0.05
    lr: float = 1e-3
    gate_lr: float = 0.01
    tune_lr: float = 1e-4
    epochs: tuple[float, ...] = (2.0, 1.0, 3.0)
    shares: tuple[float, ...] = (0.4, 0.1, 0.5)
    labels: float = 1.0
    seconds: float | None = None
    share: float = 1.0
    max_tokens: int | None = None
    stage: ClassVar[Stage] = Stage.FACTORIZE

    def __post_init__(self) -> None:
        for name in ("where", "epochs", "shares"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not 0 < self.budget <= 1:
            raise UserError(f"budget is a share of the learners' cost in (0, 1], got {self.budget}")
        if self.learners < 1 or self.hidden < 1 or not self.factor > 0:
            raise UserError("learners and hidden are at least 1, factor is positive")
        if not self.threshold >= 1 or not self.temperature > 0:
            raise UserError("threshold is at least 1, temperature positive")
        if min(self.spend, self.entropy, self.diversity, self.labels) < 0 or not 0 < self.share <= 1:
            raise UserError("weights must not be negative, share in (0, 1]")
        if min(self.lr, self.gate_lr, self.tune_lr) <= 0:
            raise UserError("learning rates must be positive")
        if len(self.epochs) != 3 or len(self.shares) != 3 or min(*self.epochs, *self.shares) <= 0:
            raise UserError("epochs and shares are three positive numbers, one for each phase")

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises UserError without a task, ModelError without a teacher or where layers are too small or unsuited."""
        started = time.monotonic()
        teacher = Recover(labels=self.labels).check(bundle, task, run)
        common.vocabulary_map(bundle, teacher)
        places = sites(bundle.model, self.where)
        parts = self.build(bundle.model, places, run.seed)
        run = common.shared(run, self.share, self.seconds)
        batches = common.feed(bundle, task, run, self.max_tokens)
        place = next(bundle.model.parameters()).device
        self.learn(bundle, places, parts, batches, run, started)
        self.choose(bundle, places, parts, batches, run, started)
        for site, part in zip(places, parts):
            install(bundle.model, site, part.train(bundle.model.training))
        try:
            self.tune(bundle, parts, task, run, batches, started)
        finally:
            bundle.model.to(place).eval()
        return bundle

    def build(self, model: nn.Module, places: Sequence[Site], seed: int = 0) -> list[AdaptiveModule]:
        """Untrained modules for the places. Raises ModelError where a layer is too small for so many learners."""
        widths = [site.width(self.learners) if self.factor == 1 else round(self.factor * site.inner / self.learners) for site in places]  # fmt: skip
        for site, width in zip(places, widths):
            if width < 1:
                raise ModelError(f"{site.path} is too small to be cut into {self.learners} learners")
        made = []
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for site, width in zip(places, widths):
                like = next(anatomy.get(model, site.path).parameters())
                made.append(
                    AdaptiveModule(
                        site.in_features, site.out_features, self.learners, width, 0 if site.residual else 1,
                        "gelu" if site.residual else "identity", self.hidden, like.device, like.dtype,
                    )
                )  # fmt: skip
        return made

    def learn(
        self, bundle: Bundle, places: Sequence[Site], parts: Sequence[AdaptiveModule], batches: Feed, run: Run,
        started: float,
    ) -> None:  # fmt: skip
        """Phase one: learners, on what goes in and out of the layers of the untouched model."""

        def objective(module: nn.Module, batch: Batch) -> Tensor:
            terms = [gating.chain_loss(p.partial_sums(x), y) for p, (x, y) in zip(parts, tap(batch))]
            return torch.stack(terms).mean()

        with tapped(bundle, places, run.device) as tap:
            self.train(0, nn.ModuleList(parts), batches, objective, run, started)

    def choose(
        self, bundle: Bundle, places: Sequence[Site], parts: Sequence[AdaptiveModule], batches: Feed, run: Run,
        started: float,
    ) -> None:  # fmt: skip
        """Phase two: gates, on the number of learners after which one more would bring little."""

        def objective(module: nn.Module, batch: Batch) -> Tensor:
            terms = []
            for part, (x, y) in zip(parts, tap(batch)):
                with torch.no_grad():
                    wanted = gating.enough(gating.errors(part.partial_sums(x), y), self.threshold)
                terms.append(nn.functional.cross_entropy(part.gate(x).float(), wanted))
            return torch.stack(terms).mean()

        with tapped(bundle, places, run.device) as tap:
            self.train(1, nn.ModuleList([p.gate for p in parts]), batches, objective, run, started)

    def tune(
        self, bundle: Bundle, parts: Sequence[AdaptiveModule], task: Any, run: Run, batches: Feed, started: float
    ) -> None:  # fmt: skip
        """Phase three: everything, end to end, in a model that holds the modules."""
        with ExitStack() as stack:
            teacher = common.teacher_of(bundle, run)
            base = imitation(bundle, teacher, task, run, batches, stack, self.labels)
            record = stack.enter_context(recording(parts, self.temperature, run))
            objective = _Tuned(self, base, parts, record)
            self.train(2, bundle.module(), batches, objective, run, started)

    def train(
        self, phase: int, module: nn.Module, batches: Feed, objective: Callable[[nn.Module, Batch], Tensor], run: Run,
        started: float,
    ) -> TrainResult:  # fmt: skip
        """One phase: its share of the run's budget, else its epochs. The last one gets the seconds that are left."""
        budget = common.shared(run, self.shares[phase] / sum(self.shares))
        seconds, tokens = budget.seconds, budget.tokens
        if run.seconds is not None and phase == 2:
            seconds = max(run.seconds - (time.monotonic() - started), 0.1)
        if seconds is None and tokens is None:
            tokens = max(int(self.epochs[phase] * batches.lengths.sum()), 1)
        settings = Settings(
            seconds=seconds, tokens=tokens, lr=(self.lr, self.gate_lr, self.tune_lr)[phase], schedule="cosine",
            weight_decay=0.0, betas=(0.9, 0.999), precision=common.precision(run), seed=run.seed,
        )  # fmt: skip
        return fit(module, batches, objective, settings, run.progress, device=run.device)


class _Tuned:
    """(module, batch) -> the loss of the third phase."""

    def __init__(
        self, step: AdaptiveModules, base: Any, parts: Sequence[AdaptiveModule], record: dict[int, Tensor]
    ) -> None:
        self.step, self.base, self.parts, self.record = step, base, parts, record
        self.cost = [p.learner_macs for p in parts]
        self.most = [p.learners for p in parts]

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        step = self.step
        self.record.clear()
        loss: Tensor = self.base(module, batch)
        mask = batch.inputs.get("attention_mask")
        weights, masks = zip(*(by_sample(self.record[i], mask) for i in range(len(self.parts))))
        counts = [gating.learners(w, p.least) for w, p in zip(weights, self.parts)]
        loss = loss + step.spend * (gating.spent(counts, masks, self.cost, self.most) - step.budget).abs()
        loss = loss + step.entropy * gating.entropy_loss(weights, masks)
        loss = loss + step.diversity * gating.diversity_loss(counts, masks, self.most)
        self.record.clear()  # and with it the graph
        return loss


@contextmanager
def tapped(bundle: Bundle, places: Sequence[Site], device: str) -> Iterator[Callable[[Batch], Pairs]]:
    """A function of a batch: (input, output) of every site in the untouched model, each (tokens, size), no padding."""
    kept: dict[tuple[int, str], Tensor] = {}

    def enter(i: int, module: nn.Module, args: tuple[Any, ...]) -> None:
        kept[i, "in"] = args[0].detach()

    def leave(i: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        kept[i, "out"] = output.detach()

    with ExitStack() as stack:
        call = stack.enter_context(common.live(bundle, device))
        for i, site in enumerate(places):
            first, last = anatomy.get(bundle.model, site.path), anatomy.get(bundle.model, site.leave)
            stack.callback(first.register_forward_pre_hook(partial(enter, i)).remove)
            stack.callback(last.register_forward_hook(partial(leave, i)).remove)

        def tap(batch: Batch) -> Pairs:
            call(batch.inputs)
            mask = batch.inputs.get("attention_mask")
            found = [(valid(kept[i, "in"], mask), valid(kept[i, "out"], mask)) for i in range(len(places))]
            kept.clear()
            return found

        yield tap
