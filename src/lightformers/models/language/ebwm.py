"""Energy-based world model for text (Gladstone et al., 2024, arXiv 2406.08862): prediction by descent on an energy.

The model scores (context, candidate for the next token) with a number, low where they fit. A prediction starts as noise and
goes down the gradient of that number: a few steps in training, more where more thought is wanted. Gradients of gradients
train it, so attention of candidates is in plain products. Layout and settings follow the authors' code of the successor
(arXiv 2507.02092); candidates that are continuous features (video), the contrastive term and the replay buffer are not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.attention.softmax import documents, visible
from lightformers.parts.attention.two_streams import TwoStreamAttention
from lightformers.parts.ffn.plain import SwiGLU

#: The step size is kept divided by so many of its first values: with Adam that multiplies its learning rate by as much. In
#: the authors' code by 1500, for steps of 500.
SCALE = 3.0
EPS = 1e-5


class Diverging(UserError):
    """Descent on the energy no longer gives numbers."""


@dataclass(frozen=True)
class EBWMConfig:
    """vocab_size, width, layers, heads; hidden: of the feed-forwards, by default 8/3 of the width.

    steps: of descent. step_size: at the start, learned if `learned`. It must suit the vocabulary: the gradient of a logit
    is about as small as its probability, so 500 serves 50,000 tokens and breaks 100. start: candidates are "noise",
    N(0, 1), or "zeros". noise: deviation of what is added before every step. through: gradients pass through all steps,
    else each step starts from fixed candidates. counted: the loss is of "all" steps or of the "last". told: candidates
    are told the number of the step by a learned vector. Raises UserError for sizes that do not fit.
    """

    vocab_size: int = 50277
    width: int = 384
    layers: int = 6
    heads: int = 6
    hidden: int | None = None
    steps: int = 2
    step_size: float = 500.0
    learned: bool = True
    start: Literal["noise", "zeros"] = "noise"
    noise: float = 0.0
    through: bool = False
    counted: Literal["all", "last"] = "all"
    told: bool = False

    def __post_init__(self) -> None:
        if min(self.vocab_size, self.width, self.layers, self.steps) < 1:
            raise UserError("vocab_size, width, layers and steps must be at least 1")
        if self.step_size <= 0 or self.noise < 0:
            raise UserError(
                f"descent needs a step above 0 and noise of at least 0, not {self.step_size}, {self.noise}"
            )
        if self.start not in ("noise", "zeros") or self.counted not in ("all", "last"):
            raise UserError("start is 'noise' or 'zeros', counted is 'all' or 'last'")


@dataclass(frozen=True)
class Observed:
    """What the model keeps of a context: keys and values of each layer, (batch, heads, n, size), and the documents."""

    layers: list[tuple[Tensor, Tensor]]
    owner: Tensor | None = None

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[2]


@dataclass(frozen=True)
class Descent:
    """The way of candidates: logits after each step, (batch, m, vocabulary) each, and energies before each step and, where
    they were asked for, after the last, (batch, m)."""

    logits: list[Tensor]
    energies: list[Tensor]


class Block(nn.Module):
    """A Llama block for both streams."""

    def __init__(self, width: int, heads: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.attention_norm, self.forward_norm = nn.RMSNorm(width, eps=EPS), nn.RMSNorm(width, eps=EPS)
        self.attention = TwoStreamAttention(width, heads, layers)
        self.feed_forward = SwiGLU(width, hidden, layers=layers)

    def observe(
        self, x: Tensor, place: Tensor, owner: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, kept = self.attention.observe(self.attention_norm(x), place, owner, past)
        x = x + y
        return x + self.feed_forward(self.forward_norm(x)), kept

    def judge(self, x: Tensor, place: Tensor, seen: Tensor, observed: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attention.judge(_rms(x, self.attention_norm), place, seen, observed)
        return x + self.feed_forward(_rms(x, self.forward_norm))


class EnergyBasedTransformer(nn.Module, PyTorchModelHubMixin):
    """(batch, n) tokens -> {"logits": (batch, n, vocabulary), "energy": (batch, n)} after the last step of descent.

    attention_mask: (batch, n), 0 at padding, runs of one number are documents. Works under `torch.no_grad`. config: an
    `EBWMConfig` or its fields. In float32: half precision loses gradients of gradients.
    """

    def __init__(self, config: EBWMConfig) -> None:
        super().__init__()
        if isinstance(config, Mapping):
            config = EBWMConfig(**config)
        self.config = config
        width = config.width
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.candidate = nn.Linear(config.vocab_size, width, bias=False)
        hidden = config.hidden or 8 * max(round(width / 3), 1)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, hidden, config.layers) for _ in range(config.layers)
        )
        self.norm = nn.RMSNorm(width, eps=EPS)
        self.energy = nn.Linear(width, 1, bias=False)
        self.told = nn.Embedding(config.steps, width) if config.told else None
        self.rate = nn.Parameter(torch.tensor(1 / SCALE), requires_grad=config.learned)
        for table in (self.embedding, self.told):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)
        nn.init.normal_(self.candidate.weight, std=width**-0.5)
        nn.init.normal_(self.energy.weight, std=width**-0.5)  # zeros would leave nothing to descend

    @property
    def step_size(self) -> Tensor:
        return (self.rate * (SCALE * self.config.step_size)).clamp(min=1e-4)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, steps: int | None = None
    ) -> dict[str, Tensor]:
        observed = self.observe(input_ids, attention_mask)
        found = self.descend(
            observed, torch.arange(input_ids.shape[1], device=input_ids.device), steps, last=True
        )
        return {"logits": found.logits[-1], "energy": found.energies[-1]}

    def loss(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, steps: int | None = None
    ) -> Tensor:
        """Cross-entropy of the next tokens, the mean over the steps that are counted. Padding and the first token of a
        document are no targets."""
        observed = self.observe(input_ids, attention_mask)
        found = self.descend(observed, torch.arange(input_ids.shape[1], device=input_ids.device), steps)
        wanted = input_ids[:, 1:]
        if observed.owner is not None:
            follows = (observed.owner[:, 1:] == observed.owner[:, :-1]) & (observed.owner[:, 1:] != 0)
            wanted = wanted.masked_fill(~follows, -100)
        counted = found.logits if self.config.counted == "all" else found.logits[-1:]
        each = [nn.functional.cross_entropy(y[:, :-1].flatten(0, 1), wanted.flatten()) for y in counted]
        return torch.stack(each).mean()

    def observe(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, past: Observed | None = None
    ) -> Observed:
        """The context's keys and values; with `past`, one more token's behind it."""
        if input_ids.numel() and int(input_ids.max()) >= self.config.vocab_size:
            raise UserError(
                f"token {int(input_ids.max())} is not one of the {self.config.vocab_size} that the model knows"
            )
        owner = None
        if attention_mask is not None and bool(
            (attention_mask != attention_mask[:, :1]).any() or (attention_mask == 0).any()
        ):
            owner = documents(attention_mask)
        seen = past.length if past is not None else 0
        place = torch.arange(seen, seen + input_ids.shape[1], device=input_ids.device)[None]
        x, kept = self.embedding(input_ids), []
        for i, block in enumerate(self.blocks):
            x, layer = block.observe(x, place, owner, past.layers[i] if past is not None else None)  # type: ignore[operator]
            kept.append(layer)
        return Observed(kept, owner)

    def judge(self, observed: Observed, at: Tensor, shares: Tensor, step: int = 0) -> Tensor:
        """The energy of candidates: shares (batch, m, vocabulary) of the tokens that follow positions `at` (m) -> (batch,
        m). A token's own energy is that of a one-hot."""
        n = observed.length
        if observed.owner is None:
            seen = (torch.arange(n, device=at.device) <= at[:, None])[None, None]
        else:
            seen = visible(n, observed.owner, None, True, at.device)[:, :, at]
        x = self.candidate(shares)
        if self.told is not None:
            x = x + self.told.weight[min(step, self.config.steps - 1)]
        for block, layer in zip(self.blocks, observed.layers):
            x = block.judge(x, at[None] + 1, seen, layer)  # type: ignore[operator]
        return self.energy(_rms(x, self.norm))[..., 0]

    def descend(
        self, observed: Observed, at: Tensor, steps: int | None = None, tolerance: float = 0.0, last: bool = False,
        generator: torch.Generator | None = None,
    ) -> Descent:  # fmt: skip
        """Candidates for what follows positions `at`, from their start down the energy.

        steps: at most; tolerance: it ends once no energy changes by more. last: the energy after the last step is
        computed too. Raises UserError for fewer than one step, Diverging where numbers are not finite.
        """
        steps = self.config.steps if steps is None else steps
        if steps < 1:
            raise UserError(f"descent takes at least one step, not {steps}")
        training = torch.is_grad_enabled()
        shape = (observed.layers[0][0].shape[0], len(at), self.config.vocab_size)
        y = self.candidate.weight.new_zeros(shape)
        if self.config.start == "noise":
            y = torch.randn(shape, generator=generator, device=y.device, dtype=y.dtype)
        logits, energies = [], []
        with torch.enable_grad():
            for step in range(steps):
                if not self.config.through:
                    y = y.detach()
                if self.config.noise and self.training:
                    y = y + self.config.noise * torch.randn(
                        shape, generator=generator, device=y.device, dtype=y.dtype
                    )
                if not y.requires_grad:
                    y.requires_grad_()
                energy = self.judge(observed, at, y.softmax(-1), step)
                energies.append(energy)
                if (
                    step
                    and tolerance
                    and float((energies[-1] - energies[-2]).detach().abs().max()) <= tolerance
                ):
                    break
                (slope,) = torch.autograd.grad(energy.sum(), y, create_graph=training)
                y = y - self.step_size * slope
                if not bool(torch.isfinite(y).all()):
                    raise Diverging(
                        f"the candidates are no numbers after step {step + 1}: take a smaller step_size"
                    )
                logits.append(y)
            if last and len(energies) == len(logits):
                energies.append(self.judge(observed, at, y.softmax(-1), steps - 1))
        if training:
            return Descent(logits, energies)
        return Descent([y.detach() for y in logits], [e.detach() for e in energies])

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, max_new_tokens: int = 20, steps: int | None = None, tries: int = 1, tolerance: float = 0.0,
        temperature: float = 0.0, generator: torch.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """(batch, n) prompts without padding -> (batch, n + max_new_tokens).

        Of `tries` descents from different starts the one with the lowest final energy counts. temperature 0: the likeliest
        token; else a sample of softmax(logits / temperature).
        """
        if input_ids.shape[1] < 1 or tries < 1 or temperature < 0:
            raise UserError(
                "give a prompt of at least one token, at least one try and a temperature of at least 0"
            )
        observed = self.observe(input_ids)
        for _ in range(max_new_tokens):
            at = torch.tensor([observed.length - 1], device=input_ids.device)
            runs = [self.descend(observed, at, steps, tolerance, True, generator) for _ in range(tries)]
            final = torch.stack([run.energies[-1][:, 0] for run in runs])
            scores = torch.stack([run.logits[-1][:, 0] for run in runs])
            best = scores[final.argmin(0), torch.arange(len(input_ids), device=input_ids.device)]
            if temperature:
                token = torch.multinomial((best / temperature).softmax(-1), 1, generator=generator)
            else:
                token = best.argmax(-1, keepdim=True)
            input_ids = torch.cat([input_ids, token], 1)
            observed = self.observe(token, past=observed)
        return input_ids


def _rms(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """The norm in plain operations, whose second derivative exists on every device."""
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * norm.weight
