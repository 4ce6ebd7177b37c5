"""DCLIP: an image encoder learns what a teacher sees that reads the caption and the regions of the image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lightformers.bundle import Batch
from lightformers.compress.distill import common
from lightformers.compress.distill.pairs import Pairs, Shuffled, info_nce
from lightformers.errors import ModelError, UserError
from lightformers.parts.attention.cross import BidirectionalCrossAttention
from lightformers.steps import Run
from lightformers.train import Settings, fit, losses

#: CLIP's own bound of the inverse temperature.
_SHARPEST = 100.0
_PARTS = ("vision_model", "text_model", "visual_projection", "text_projection", "logit_scale")


class MetaTeacher(nn.Module):
    """Embeddings of an image and its caption that have read each other (Csizmadia et al., 2025, arXiv 2505.21549).

    `g' = norm(g + W pool(G'))`, the same for the caption, where G' are the rows of the image (itself and its regions)
    after `layers` of cross-attention with the words. W is zero at first: the teacher begins as the dual encoder.

    An image's embedding depends on the caption it is given with, so it is a target for matched pairs and no retrieval
    model: a ranking by it would have to fuse every image with every caption.
    """

    def __init__(self, width: int, heads: int = 8, layers: int = 2, log_scale: float = 2.6592) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([BidirectionalCrossAttention(width, heads) for _ in range(layers)])
        self.image = nn.Linear(width, width, bias=False)
        self.text = nn.Linear(width, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(float(log_scale)))
        nn.init.zeros_(self.image.weight)
        nn.init.zeros_(self.text.weight)

    @property
    def scale(self) -> Tensor:
        """Inverse temperature."""
        return self.log_scale.exp().clamp(max=_SHARPEST)

    def forward(
        self, image: Tensor, text: Tensor, regions: Tensor, region_mask: Tensor, words: Tensor, word_mask: Tensor
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """image, text: (B, e) unit vectors; regions: (B, R, e), R may be 0; words: (B, S, e); masks. Two (B, e)."""
        g = torch.cat([image[:, None], regions], 1)
        g_mask = torch.cat([region_mask.new_ones(len(image), 1), region_mask], 1).bool()
        t, t_mask = words, word_mask.bool()
        for block in self.blocks:
            g, t = block(g, t, g_mask, t_mask)
        return (
            normalize((image + self.image(_mean(g, g_mask))).float(), dim=-1),
            normalize((text + self.text(_mean(t, t_mask))).float(), dim=-1),
        )


def _mean(rows: Tensor, mask: Tensor) -> Tensor:
    """Mean over valid rows: (B, R, e), (B, R) -> (B, e)."""
    weight = mask.to(rows.dtype)[..., None]
    return (rows * weight).sum(1) / weight.sum(1)


@dataclass(frozen=True)
class DCLIP:
    """Distil a cross-modal teacher into the image encoder of a CLIP (Csizmadia et al., 2025, arXiv 2505.21549).

    `teach` trains a `MetaTeacher` on a frozen dual encoder, `targets` asks it once; `distil` trains the image encoder on

        contrast * InfoNCE(f(x), t(y)) + cosine * (1 - cos(f(x), g')) + anchor * (1 - cos(f(x), f0(x)))

    t: the frozen text encoder, so that prompts for classes stay valid; g': the teacher's embedding of the image with its
    caption; f0: the image encoder as it was. What comes out is a plain dual encoder: no detector and no
    cross-attention run at inference, and `save_pretrained` stores it.

    layers, heads: of the teacher's cross-attention. batch: captions in a batch, also the number of negatives.
    teacher_steps, steps: updates where the run has no seconds. lr, teacher_lr, warmup, weight_decay: of the training.

    Any model with CLIP's parts (`vision_model`, `text_model`, their projections, `logit_scale`) will do. The paper's
    abstract leaves open: the size of the teacher, its residual start, its loss (the same contrast), the weights and the
    anchor; these are this project's choices. The temperature stays that of the original. Boxes come from the caller
    (the paper: a detector), see `pairs.crop`. Dropout is off. No step of a recipe: recipes know no image-text task.
    """

    contrast: float = 1.0
    cosine: float = 1.0
    anchor: float = 0.0
    layers: int = 2
    heads: int = 8
    batch: int = 64
    teacher_steps: int = 1000
    steps: int = 1000
    lr: float = 1e-5
    teacher_lr: float = 1e-4
    warmup: float = 0.05
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if min(self.contrast, self.cosine, self.anchor) < 0:
            raise UserError("weights of losses must not be negative")
        if not (self.contrast or self.cosine or self.anchor):
            raise UserError(
                "one of contrast, cosine and anchor must be positive: there is nothing to train on"
            )
        if self.batch < 2:
            raise UserError("a contrast needs batches of two captions or more")
        if min(self.layers, self.heads, self.teacher_steps, self.steps) < 1:
            raise UserError("layers, heads, teacher_steps and steps are at least 1")
        if not self.lr > 0 or not self.teacher_lr > 0:
            raise UserError("learning rates must be positive")

    def teach(self, model: nn.Module, pairs: Pairs, run: Run | None = None) -> MetaTeacher:
        """Train a teacher on the frozen `model`. Raises ModelError for a model without CLIP's parts."""
        run = run or Run()
        clip: Any = checked(model)
        width = clip.visual_projection.weight.shape[0]
        if width % self.heads:
            raise UserError(f"embeddings of size {width} cannot be cut into {self.heads} heads")
        batches = Shuffled(pairs, self.batch, run.seed)
        with torch.random.fork_rng():
            torch.manual_seed(run.seed)
            teacher = MetaTeacher(width, self.heads, self.layers, float(clip.logit_scale.detach()))

        def objective(module: Any, batch: Batch) -> Tensor:
            image, text = module(*features(clip, batch.inputs))
            return info_nce(image, text, module.scale, batch.targets["same"].to(image.device))

        with still(model, run.device):
            self._fit(teacher, batches, objective, run, self.teacher_lr, self.teacher_steps)
        return teacher.eval()

    def distil(
        self, model: nn.Module, pairs: Pairs, goals: Tensor | None = None, run: Run | None = None
    ) -> nn.Module:
        """Train the image encoder of `model`, in place. goals: (n, e) of the teacher (`targets`), unless `cosine` is 0.

        Raises ModelError for a model without CLIP's parts, UserError where goals are missing or do not fit.
        """
        run = run or Run()
        clip: Any = checked(model)
        width = clip.visual_projection.weight.shape[0]
        if self.cosine and (goals is None or tuple(goals.shape) != (len(pairs), width)):
            raise UserError(
                f"cosine asks for the teacher's embeddings, ({len(pairs)}, {width}), see `targets`; or set cosine=0"
            )
        batches = Shuffled(pairs, self.batch, run.seed)
        texts = embed_texts(clip, pairs.input_ids, pairs.attention_mask, run.device).to(run.device)
        wanted = goals.to(run.device) if self.cosine and goals is not None else None
        start = embed_images(clip, pairs.pixel_values, run.device).to(run.device) if self.anchor else None
        scale = float(clip.logit_scale.detach().exp().clamp(max=_SHARPEST))

        def objective(module: Any, batch: Batch) -> Tensor:
            index = batch.targets["index"]
            own = image_vectors(module, batch.inputs["pixel_values"])
            loss = own.sum() * 0.0
            if self.contrast:
                same = batch.targets["same"].to(own.device)
                loss = loss + self.contrast * info_nce(own, texts[index], scale, same)
            if wanted is not None:
                loss = loss + self.cosine * losses.embedding_cosine(own, wanted[index])
            if start is not None:
                loss = loss + self.anchor * losses.embedding_cosine(own, start[pairs.images[index]])
            return loss

        place = next(clip.parameters()).device
        frozen = ("text_model.*", "text_projection.*", "logit_scale")
        try:
            self._fit(clip, batches, objective, run, self.lr, self.steps, frozen)
        finally:
            clip.to(place).eval()
        return model

    def _fit(
        self, module: nn.Module, batches: Shuffled, objective: Any, run: Run, lr: float, steps: int,
        frozen: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        settings = Settings(
            seconds=run.seconds, steps=None if run.seconds is not None else steps, lr=lr, warmup=self.warmup,
            schedule="cosine", weight_decay=self.weight_decay, precision=common.precision(run), frozen=frozen,
            seed=run.seed,
        )  # fmt: skip
        fit(module, batches, objective, settings, run.progress, device=run.device)


def checked(model: nn.Module) -> nn.Module:
    """The model itself. Raises ModelError if it has not the parts of a CLIP."""
    if absent := [name for name in _PARTS if not hasattr(model, name)]:
        raise ModelError(
            f"{type(model).__name__} has no {', '.join(absent)}: a dual encoder built like CLIPModel is needed"
        )
    return model


@contextmanager
def still(model: nn.Module, device: str) -> Iterator[None]:
    """The model on the device in eval mode, put back afterwards."""
    place, training = next(model.parameters()).device, model.training
    model.eval().to(device)
    try:
        yield
    finally:
        model.to(place).train(training)


def image_vectors(clip: Any, pixels: Tensor) -> Tensor:
    """(..., channels, height, width) -> (..., e), unit length, float32."""
    flat = pixels.reshape(-1, *pixels.shape[-3:])
    found = clip.visual_projection(clip.vision_model(pixel_values=flat).pooler_output)
    return normalize(found.float(), dim=-1).reshape(*pixels.shape[:-3], -1)


@torch.no_grad()
def features(
    clip: Any, inputs: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the teacher reads, from the frozen encoders: the arguments of `MetaTeacher.forward`."""
    mask = inputs["attention_mask"]
    image = image_vectors(clip, inputs["pixel_values"])
    said = clip.text_model(input_ids=inputs["input_ids"], attention_mask=mask)
    text = normalize(clip.text_projection(said.pooler_output).float(), dim=-1)
    words = clip.text_projection(said.last_hidden_state).float()
    seen, held = inputs.get("regions"), inputs.get("region_mask")
    if seen is None or held is None or not seen.shape[1]:
        empty = image.new_zeros(len(image), 0, image.shape[1])
        return image, text, empty, mask.new_zeros(len(image), 0), words, mask
    return image, text, image_vectors(clip, seen), held, words, mask


@torch.no_grad()
def targets(
    model: nn.Module, teacher: MetaTeacher, pairs: Pairs, device: str = "cpu", size: int = 64
) -> Tensor:
    """(n, e): the teacher's embedding of each caption's image, given that caption. Not independent of the text."""
    made = []
    with still(model, device), still(teacher, device):
        for index in torch.arange(len(pairs)).split(size):
            batch = pairs.batch(index).to(torch.device(device))
            made.append(teacher(*features(model, batch.inputs))[0].cpu())
    return torch.cat(made)


@torch.no_grad()
def embed_images(model: nn.Module, pixels: Tensor, device: str = "cpu", size: int = 128) -> Tensor:
    """(m, channels, height, width) -> (m, e), unit length, on the CPU."""
    with still(model, device):
        return torch.cat([image_vectors(model, part.to(device)).cpu() for part in pixels.split(size)])


@torch.no_grad()
def embed_texts(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, device: str = "cpu", size: int = 256
) -> Tensor:
    """(n, length) -> (n, e), unit length, on the CPU."""
    clip: Any = model
    made = []
    with still(model, device):
        for ids, mask in zip(input_ids.split(size), attention_mask.split(size)):
            said = clip.text_model(input_ids=ids.to(device), attention_mask=mask.to(device))
            made.append(normalize(clip.text_projection(said.pooler_output).float(), dim=-1).cpu())
    return torch.cat(made)


def zero_shot(model: nn.Module, pixels: Tensor, prompt_ids: Tensor, prompt_mask: Tensor) -> Tensor:
    """(m,) the class whose prompt, a row of (classes, length), is nearest to each image."""
    return (embed_images(model, pixels) @ embed_texts(model, prompt_ids, prompt_mask).T).argmax(-1)
