"""Teacher intervention: ternary weights trained while the teacher's attention stands in for the student's."""

from __future__ import annotations

import dataclasses
import random
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle
from lightformers.compress.distill import common
from lightformers.compress.layers import linears
from lightformers.compress.quantize import lookup
from lightformers.compress.quantize.intervention import Order, Watch, kind_at, layer_losses
from lightformers.compress.quantize.qat import LatentEmbedding, LatentLinear, pack_all
from lightformers.errors import ModelError, UserError
from lightformers.parts.activation_quantizer import ActivationQuantizer
from lightformers.parts.attention.interface import AttentionSettings
from lightformers.parts.number_formats import number_format
from lightformers.runners.named import named, plain_arguments
from lightformers.steps import Run, Stage
from lightformers.train import Feed, losses
from lightformers.train.loop import count


@dataclass(frozen=True)
class TeacherIntervention:
    """Quantization-aware training in two stages (Kim et al., 2023, arXiv 2302.11812).

    The teacher is the model as it comes, in floats; the student starts from it, with every projection of the blocks
    and the word embedding rounded in every forward and gradients passing straight through. Stage 1 puts the teacher's
    attention output, then its context, then its attention map into the student's forward; stage 2 trains without
    that. Both match class probabilities (or vectors), hidden states, attention scores and attention outputs, without
    labels. Ternary weights are packed five to a byte; no fast kernel exists yet.

    weights: "ternary" (the paper's), "binary", or an integer format. activations: format of what enters the projections
        and the products of attention, one step per tensor and forward (a result then depends on its batch); None: floats.
    clip: larger latent weights and activations are cut, and get no gradient.
    order: of interventions, "gradual" by default (see `intervention.kind_at`); "none" is plain distillation.
    first: share of this step's budget that stage 1 gets.
    embeddings: whether the word embedding is quantized (one step per row); one that is shared by modules stays.
    lr, epochs (of a stage), seconds, share, max_tokens, warmup, weight_decay: as in `Recover`; the learning rate rises
        and falls once in each stage.

    Deviations: pooler, head, norms and positions stay floats; while outputs are replaced, the attention loss is that of
    the projection's own output. Raises ModelError for fused projections (gpt2), decoders that read an encoder, and
    attention outside of transformers' interface; UserError without a task.
    """

    weights: str = "ternary"
    activations: str | None = "int8"
    clip: float = 2.5
    order: Order = "gradual"
    first: float = 0.5
    embeddings: bool = True
    lr: float = 2e-5
    epochs: float = 3.0
    seconds: float | None = None
    share: float = 1.0
    max_tokens: int | None = None
    warmup: float = 0.1
    weight_decay: float = 0.01
    stage: ClassVar[Stage] = Stage.QUANTIZE

    def __post_init__(self) -> None:
        number_format(self.weights)
        if self.activations is not None:
            number_format(self.activations)
        if self.order not in get_args(Order):
            raise UserError(f"order {self.order!r} is not one of {', '.join(get_args(Order))}")
        if not 0 <= self.first < 1 or not 0 < self.share <= 1 or not self.clip > 0:
            raise UserError("first is a share in [0, 1), share one in (0, 1], clip positive")

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        started = time.monotonic()
        if task is None:
            raise UserError(
                "this step trains: give a task, whose training examples the models are compared on"
            )
        if bundle.task is None or bundle.processor is None:
            raise ModelError("this step compares outputs: load the model with a task and its processor")
        teacher = bundle.copy()
        Watch(bundle.model, bundle.module())  # refuses before anything is changed
        latent = self._latent(bundle.model)
        run = common.shared(run, self.share, self.seconds)
        batches = common.feed(bundle, task, run, self.max_tokens)
        for path, module in latent.items():
            anatomy.surgery.replace(bundle.model, path, module)
        if anatomy.of(teacher.model).tied and any(isinstance(m, LatentEmbedding) for m in latent.values()):
            lookup.untie(bundle.model)
        first = self.first if self.order != "none" else 0.0
        if first:
            part = common.shared(run, first)
            self._train(bundle, teacher, batches, part, started, self.order)
            spent = time.monotonic() - started
            run = dataclasses.replace(run, seconds=None if run.seconds is None else run.seconds - spent)
            run = dataclasses.replace(
                run, tokens=None if run.tokens is None else max(run.tokens - (part.tokens or 0), 1)
            )
            started = time.monotonic()
        self._train(bundle, teacher, batches, run, started, "none")
        pack_all(bundle.model)
        return bundle

    def _reader(self) -> ActivationQuantizer | None:
        return (
            None
            if self.activations is None
            else ActivationQuantizer(self.activations, "tensor", clip=self.clip)
        )

    def _latent(self, model: nn.Module) -> dict[str, nn.Module]:
        found = anatomy.of(model)
        made: dict[str, nn.Module] = {}
        for path in linears(found):
            weight, bias = anatomy.linear(model, path)
            if not bool(torch.isfinite(weight).all()):
                raise ModelError(f"the weights of {path} hold NaN or infinity: the checkpoint is damaged")
            made[path] = LatentLinear(weight, bias, self.weights, "matrix", self.clip, self._reader())
        tables = [p for p in lookup.tables(model) if p == found.embeddings] if self.embeddings else []
        for path in tables:
            made[path] = LatentEmbedding(anatomy.get(model, path).weight, self.weights, self.clip)  # type: ignore[arg-type]
        return made

    def settings(self) -> AttentionSettings | None:
        """The products of attention, rounded as the projections' inputs are."""
        reader = self._reader()
        return None if reader is None else AttentionSettings(operands=reader.args, weights=reader.args)

    def _train(
        self, bundle: Bundle, teacher: Bundle, batches: Feed, run: Run, started: float, order: Order
    ) -> None:
        spent = Spent(batches, run, self.epochs, started)
        draws = random.Random(run.seed)
        module, reference = bundle.module(), teacher.module()
        arguments = plain_arguments(module)
        reference.to(run.device)
        with ExitStack() as stack:
            own = stack.enter_context(Watch(bundle.model, module, self.settings()))
            theirs = stack.enter_context(Watch(teacher.model, reference))

            def objective(running: nn.Module, batch: Batch) -> Tensor:
                kind = kind_at(spent.fraction, order, draws.random())
                inputs = {**batch.inputs, **arguments}
                with torch.no_grad():
                    goal, target = theirs.forward(inputs)
                own.module = running
                found, trace = own.forward(inputs, kind, target)
                spent.tokens += count(batch)
                terms = layer_losses(trace, target, kind)
                return (
                    output_loss(named(found), named(goal), bundle.task, batch)
                    + torch.stack(list(terms.values())).sum()
                )

            plan = common.Plan(self.lr, self.epochs, self.warmup, self.weight_decay)
            common.train(bundle, batches, objective, plan, run, started)


class Spent:
    """How much of a stage's budget is spent, in the measure that ends it: tokens, or else seconds."""

    def __init__(self, batches: Feed, run: Run, epochs: float, started: float) -> None:
        self.tokens, self.started = 0, started
        self.seconds = None if run.seconds is None else max(run.seconds, 1e-9)
        self.most = run.tokens
        if run.seconds is None and run.tokens is None:
            self.most = max(int(epochs * batches.lengths.sum()), 1)

    @property
    def fraction(self) -> float:
        shares = [0.0]
        if self.most is not None:
            shares.append(self.tokens / self.most)
        if self.seconds is not None:
            shares.append((time.monotonic() - self.started) / self.seconds)
        return max(shares)


def output_loss(own: Any, theirs: Any, task: str | None, batch: Batch) -> Tensor:
    """Soft cross-entropy of class probabilities (per token where there are tokens), or the distance of vectors."""
    if "embedding" in own:
        return losses.embedding_mse(own["embedding"], theirs["embedding"].detach())
    if "logits" not in own:
        raise ModelError(f"a bundle with task {task!r} gives neither embedding nor logits")
    mask = batch.inputs.get("attention_mask")
    weight = mask if mask is not None and own["logits"].dim() == 3 else None
    return losses.soft_cross_entropy(own["logits"], theirs["logits"].detach(), weight=weight)
