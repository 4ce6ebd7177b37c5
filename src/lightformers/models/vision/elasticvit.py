"""ElasticViT (Tang et al., ICCV 2023, arXiv 2303.09730): a super-network of mobile vision transformers.

Convolution stages, then attention stages; input side, depth, width, expansion, kernel, feed-forward ratio and value
width of every sub-network are free. A sub-network runs on leading channels and blocks of the large one, and is copied
out as a network of its own (`subnet`). How it is trained: `lightformers.compress.elastic.elasticvit`.

Choices where the paper's description leaves some: layer norm is per token (the released code normalizes tokens and
channels together); values are replaced by their depthwise convolution; a residual stands around every bottleneck but a
stage's first; q, k, v are separate layers. With these the space reaches from 37.7 million to 3.199 billion
multiply-adds (the paper: 37 million to 3.2 billion) and its first small network costs 217.73 million (217.64), but the
largest network has 37,435,406 parameters where the released one has 40,488,174: what the rest are is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn import functional as F

from lightformers.errors import ModelError, UserError
from lightformers.models import plain
from lightformers.models.vision.elasticvit_blocks import AttentionStage, ConvStage
from lightformers.models.vision.elasticvit_cost import flops
from lightformers.models.vision.elasticvit_space import Architecture, ElasticViTSpace, Stage
from lightformers.parts.elastic import ElasticBatchNorm, ElasticConv, ElasticLinear, copy_into


def _steps(low: int, high: int, step: int = 1) -> tuple[int, ...]:
    return tuple(range(low, high + 1, step))


#: The paper's space. Steps of 8 channels (convolution) and 16 (attention, one head).
PAPER = ElasticViTSpace(
    resolutions=(128, 160, 176, 192, 224, 256),
    stages=(
        Stage("conv", (1, 2), (16, 24), (1,), kernels=(3, 5)),
        Stage("conv", _steps(2, 5), _steps(16, 32, 8), _steps(3, 6), 2, (3, 5)),
        Stage("conv", _steps(2, 6), _steps(16, 48, 8), _steps(3, 6), 2, (3, 5), squeeze=True),
        Stage("attention", _steps(1, 5), _steps(48, 96, 16), _steps(2, 5), 2, values=(2, 3, 4)),
        Stage("attention", _steps(1, 6), _steps(80, 160, 16), _steps(2, 5), 1, values=(2, 3, 4)),
        Stage("attention", _steps(1, 6), _steps(144, 288, 16), _steps(2, 5), 2, values=(2, 3, 4)),
        Stage("attention", _steps(1, 6), _steps(160, 320, 16), _steps(2, 5), 2, values=(2, 3, 4)),
    ),
)
#: Sub-networks of the paper by name.
ARCHITECTURES = {
    "elasticvit_s1": Architecture(
        192,
        (16, 24, 40, 64, 96, 192, 272),
        (1, 3, 3, 2, 2, 2, 2),
        ((1,), (3, 3, 3), (3, 3, 3), (2, 2), (2, 2), (3, 3), (4, 4)),
        ((3,), (3, 3, 3), (3, 3, 3), (2, 2), (2, 2), (2, 2), (2, 2)),
    )
}


class ElasticViTModel(nn.Module, PyTorchModelHubMixin, library_name="lightformers"):
    """(batch, 3, side, side) images -> {"logits": (batch, classes)}, as the whole network or as a sub-network.

    space: the sub-networks there are. whole: the largest one that this module holds, `space.largest` by default; with
        another one this is a network of its own, without weights that it does not use. Both may be given as the
        dictionaries that `to_dict` makes.

    Images of another side are resized to the sub-network's. Raises ModelError where a sub-network is not in the space, or
    larger than `whole`.
    """

    main_input_name = "pixel_values"

    def __init__(
        self,
        space: ElasticViTSpace | Mapping[str, Any],
        whole: Architecture | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        space = space if isinstance(space, ElasticViTSpace) else ElasticViTSpace.from_dict(space)
        if whole is None:
            whole = space.largest
        whole = whole if isinstance(whole, Architecture) else Architecture.from_dict(whole)
        space.check(whole)
        self.space, self.whole = space, whole
        width = whole.channels[0]
        self.stem = ElasticConv(space.inputs, width, 3, stride=2)
        self.stem_norm = ElasticBatchNorm(width)
        self.stages = nn.ModuleList()
        for i, (stage, side) in enumerate(zip(space.stages, space.sides(whole.resolution))):
            channels, ratios, second = whole.channels[i], whole.ratios[i], whole.second[i]
            self.stages.append(
                ConvStage(stage, width, channels, ratios, second, i == 0)
                if stage.kind == "conv"
                else AttentionStage(stage, width, channels, ratios, second, space.head, side)
            )
            width = channels
        self.widen = ElasticConv(width, space.expansion * width)
        self.widen_norm = ElasticBatchNorm(space.expansion * width)
        self.features = ElasticLinear(space.expansion * width, space.features)
        self.classifier = ElasticLinear(space.features, space.classes)

    def _save_pretrained(self, save_directory: Path) -> None:
        plain.write(self, save_directory, {"space": self.space.to_dict(), "whole": self.whole.to_dict()})

    def forward(self, pixel_values: Tensor, arch: Architecture | None = None) -> dict[str, Tensor]:
        """arch: the sub-network to run; None: the whole network."""
        if arch is None:
            arch = self.whole
        else:
            self.check(arch)
        x = pixel_values
        if x.shape[-2:] != (arch.resolution, arch.resolution):
            x = F.interpolate(x, (arch.resolution, arch.resolution), mode="bilinear", antialias=True)
        # channels last: tokens are then a view of the map, and training on a CPU takes two thirds of the time
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.hardswish(self.stem_norm(self.stem(x, arch.channels[0])))
        for stage, *choices in zip(self.stages, arch.channels, arch.ratios, arch.second):
            x = stage(x, *choices)
        x = F.hardswish(self.widen_norm(self.widen(x, self.space.expansion * x.shape[1]))).mean((2, 3))
        return {"logits": self.classifier(F.hardswish(self.features(x)))}

    def check(self, arch: Architecture) -> None:
        """Raises ModelError where this network does not hold `arch`."""
        self.space.check(arch)
        whole = self.whole
        if arch is whole or whole == self.space.largest:
            return
        over = any(a > b for a, b in zip((*arch.channels, *arch.depths), (*whole.channels, *whole.depths)))
        rows = zip((*arch.ratios, *arch.second), (*whole.ratios, *whole.second))
        if over or arch.resolution > whole.resolution or any(a > b for x, y in rows for a, b in zip(x, y)):
            raise ModelError(f"{arch} is larger than this network ({whole})")

    def subnet(self, arch: Architecture) -> ElasticViTModel:
        """A network of its own with a copy of the weights that `arch` uses; on the same device, in the same mode.

        In training mode it gives what `self(x, arch)` gives. In evaluation mode too, but batch statistics are shared by
        all widths and right for none: recalibrate them first (`lightformers.compress.elastic.batch_norm`).
        """
        self.check(arch)
        made = ElasticViTModel(self.space, arch).to(self.stem.weight.device, self.stem.weight.dtype)
        copy_into(made, self)
        return made.train(self.training)

    def flops(self, arch: Architecture | None = None) -> int:
        """Multiply-adds of one image."""
        return flops(self.space, arch or self.whole)


def create(name: str, classes: int = 1000, seed: int = 0) -> ElasticViTModel:
    """A network by its name, with random weights: "elasticvit" (the super-network) or one of `ARCHITECTURES`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _made(name, classes)


def _made(name: str, classes: int) -> ElasticViTModel:
    if name != "elasticvit" and name not in ARCHITECTURES:
        raise UserError(f"unknown network {name!r}; there are elasticvit, {', '.join(ARCHITECTURES)}")
    space = ElasticViTSpace.from_dict({**PAPER.to_dict(), "classes": classes})
    return ElasticViTModel(space, ARCHITECTURES.get(name))


@dataclass(frozen=True)
class ElasticViTConfig:
    """For `lightformers.create_model`. network: "elasticvit" or one of `ARCHITECTURES`. classes: of its head."""

    network: str = "elasticvit"
    classes: int = 1000


def of_config(config: ElasticViTConfig) -> ElasticViTModel:
    """A network by its name, with weights that torch's own seed decides."""
    return _made(config.network, config.classes)
