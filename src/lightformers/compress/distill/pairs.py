"""Images with captions as plain tensors, crops of them, and the contrastive loss."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightformers.bundle import Batch
from lightformers.errors import DataError, UserError

_MASKED = -1e30  # finite: gradients stay free of NaN


@dataclass(frozen=True)
class Pairs:
    """m images and n captions, ready for the encoders.

    pixel_values: (m, channels, height, width). input_ids, attention_mask: (n, length). image: (n,) the image of each
    caption; None: they are as many, in the same order. regions: (m, R, channels, height, width), parts of the images at
    the encoder's size; region_mask: (m, R), True where there is one; None: no regions.
    Raises DataError where the shapes do not fit.
    """

    pixel_values: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    image: Tensor | None = None
    regions: Tensor | None = None
    region_mask: Tensor | None = None

    def __post_init__(self) -> None:
        images, captions = len(self.pixel_values), len(self.input_ids)
        if self.image is None:
            object.__setattr__(self, "image", torch.arange(captions))
        image = self.images
        if self.pixel_values.dim() != 4 or self.input_ids.shape != self.attention_mask.shape:
            raise DataError(
                "pixel_values are (m, channels, height, width), input_ids and attention_mask (n, length)"
            )
        if image.shape != (captions,) or (
            captions and not 0 <= int(image.min()) <= int(image.max()) < images
        ):
            raise DataError(f"image must name one of {images} images for each of {captions} captions")
        if captions and not bool(self.attention_mask.bool().any(1).all()):
            raise DataError("a caption is empty: its attention_mask holds nothing")
        if (self.regions is None) != (self.region_mask is None):
            raise DataError("regions and region_mask come together")
        if self.regions is not None and self.region_mask is not None:
            wanted = (images, self.regions.shape[1], *self.pixel_values.shape[1:])
            if tuple(self.regions.shape) != wanted or self.region_mask.shape != wanted[:2]:
                raise DataError(f"regions must be {wanted}, their mask {wanted[:2]}")

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def images(self) -> Tensor:
        """(n,) the image of each caption."""
        assert self.image is not None
        return self.image

    def without_regions(self) -> Pairs:
        """The same, with nothing but whole images."""
        return Pairs(self.pixel_values, self.input_ids, self.attention_mask, self.image)

    def batch(self, index: Tensor) -> Batch:
        """Captions `index` with their images. targets: index, and `same` (see `alike`)."""
        image = self.images[index]
        inputs = {
            "pixel_values": self.pixel_values[image],
            "input_ids": self.input_ids[index],
            "attention_mask": self.attention_mask[index],
        }
        if self.regions is not None and self.region_mask is not None:
            inputs |= {"regions": self.regions[image], "region_mask": self.region_mask[image]}
        same = alike(inputs["input_ids"], inputs["attention_mask"], image)
        return Batch(inputs, {"index": index, "same": same})


@dataclass
class Shuffled:
    """Batches of `size` captions in an order that depends on (seed, epoch) alone; what is over is left out.

    Raises UserError for batches of one, which hold nothing to contrast with.
    """

    pairs: Pairs
    size: int
    seed: int = 0
    _epoch: tuple[int, np.ndarray] = field(default=(-1, np.zeros(0, dtype=np.int64)), repr=False)

    def __post_init__(self) -> None:
        self.size = min(self.size, len(self.pairs))
        if self.size < 2:
            raise UserError("a contrast needs batches of two captions or more")

    def batch(self, position: int) -> Batch:
        """The batch at `position`, counted over all epochs."""
        epoch, place = divmod(position, len(self.pairs) // self.size)
        if self._epoch[0] != epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.pairs))
            self._epoch = (epoch, order)
        chosen = self._epoch[1][place * self.size : (place + 1) * self.size]
        return self.pairs.batch(torch.from_numpy(chosen))


def alike(input_ids: Tensor, attention_mask: Tensor, image: Tensor) -> Tensor:
    """(B, B) bool: other rows with the very same caption, or of the same image, which are no negatives."""
    words = input_ids.masked_fill(~attention_mask.bool(), -1)
    same = (words[:, None] == words[None]).all(-1) | (image[:, None] == image[None])
    return same & ~torch.eye(len(words), dtype=torch.bool, device=words.device)


def info_nce(images: Tensor, texts: Tensor, scale: Tensor | float, same: Tensor | None = None) -> Tensor:
    """Symmetric contrastive loss of unit vectors (B, d), (B, d), both directions averaged; in float32.

    scale: inverse temperature. same: (B, B), pairs that are no negatives (the diagonal is False).
    Raises UserError for a batch of one.
    """
    if len(images) < 2:
        raise UserError("a contrast needs batches of two captions or more")
    with torch.autocast(images.device.type, enabled=False):
        logits = scale * (images.float() @ texts.float().T)
        if same is not None:
            logits = logits.masked_fill(same, _MASKED)
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def crop(pixels: Tensor, boxes: Tensor, mask: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Parts of images, stretched to one size: (m, R, channels, *size), and (m, R) where there is one.

    pixels: (m, channels, height, width). boxes: (m, R, 4) left, top, right, bottom in pixels; mask: (m, R), None for
    all. Boxes are clipped to the image, and what is empty then is dropped (zeros). Bilinear, without anti-aliasing.
    Raises DataError for boxes that are no numbers.
    """
    height, width = pixels.shape[-2:]
    keep = torch.ones(boxes.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    if not bool(torch.isfinite(boxes[keep]).all()):
        raise DataError("a box holds NaN or infinity")
    most = boxes.new_tensor([width, height, width, height])
    inside = torch.minimum(boxes.nan_to_num(0.0, 0.0, 0.0).clamp(min=0), most)
    left, top, right, bottom = inside.float().unbind(-1)
    keep = keep & (right > left) & (bottom > top)
    down, across = ((torch.arange(n, dtype=torch.float32, device=pixels.device) + 0.5) / n for n in size)
    made = []
    for r in range(boxes.shape[1]):
        y = top[:, r, None] + down * (bottom - top)[:, r, None]
        x = left[:, r, None] + across * (right - left)[:, r, None]
        y, x = 2 * y / height - 1, 2 * x / width - 1
        grid = torch.stack([x[:, None].expand(-1, size[0], -1), y[:, :, None].expand(-1, -1, size[1])], -1)
        part = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
        made.append(part.to(pixels.dtype) * keep[:, r, None, None, None])
    if not made:
        return pixels.new_zeros(len(pixels), 0, pixels.shape[1], *size), keep
    return torch.stack(made, 1), keep
