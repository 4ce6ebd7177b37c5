"""Reading labelled images: a folder of class folders, an npz archive, or a hub data set. Always RGB, HWC, uint8."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightformers.errors import DataError, MissingExtra
from lightformers.tasks import data
from lightformers.tasks.splits import role

if TYPE_CHECKING:
    from lightformers.bundle import Example

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"))
_IMAGE, _LABEL, _NAMES = (
    ("x", "images", "image"),
    ("y", "labels", "label"),
    ("classes", "class_names", "label_names"),
)


def read(path: str | Path, image: str | None, label: str | None) -> dict[str, list[Example]]:
    """Examples {"image", "label": name or number} of what `path` names: {"": all}, or by split.

    image, label: arrays of the npz or columns of the hub data set, where they have unusual names.
    """
    place = Path(path)
    if place.is_dir():
        return _folder(place)
    if place.is_file():
        if place.suffix.lower() != ".npz":
            raise DataError(f"{place}: images come as a folder of class folders, an .npz file or a hub name")
        return _npz(place, image, label)
    if place.suffix or str(path).startswith((".", "/", "~")):
        raise DataError(f"there is no file or folder {path}")
    return _hub(str(path), image, label)


def rgb(array: np.ndarray, where: str) -> np.ndarray:
    """Any one image -> (height, width, 3) uint8. Fractions from 0 to 1 are scaled; grey is repeated."""
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        raise DataError(
            f"{where}: an image is (height, width) or (height, width, 1, 3 or 4), got {array.shape}"
        )
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise DataError(f"{where}: the image holds NaN or infinity")
        array = np.rint(array * (255 if array.max(initial=0) <= 1 else 1))
    if array.dtype.kind == "b":
        array = array * 255
    if array.min(initial=0) < 0 or array.max(initial=0) > 255:
        raise DataError(
            f"{where}: pixels run from {array.min()} to {array.max()}; 0 to 255 (or 0 to 1) are needed"
        )
    array = array.astype(np.uint8)[..., :3]
    return np.ascontiguousarray(np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array)


def _folder(folder: Path) -> dict[str, list[Example]]:
    inside = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    archives = sorted(folder.glob("*.npz"))
    if not inside and len(archives) == 1:
        return _npz(archives[0], None, None)
    if inside and all(role(p.name) for p in inside):
        return {str(role(p.name)): _classes(p) for p in inside}
    return {"": _classes(folder)}


def _classes(folder: Path) -> list[Example]:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtra("vision", "pillow") from error
    files = [
        (file, kind.name)
        for kind in sorted(folder.iterdir())
        if kind.is_dir() and not kind.name.startswith(".")
        for file in sorted(kind.rglob("*"))
        if file.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise DataError(
            f"{folder} holds no images in class folders; it is to look like {folder.name}/CLASS/IMAGE.png"
        )
    room = _Room(len(files), str(folder))
    out: list[Example] = []
    for file, kind in files:
        try:
            with Image.open(file) as opened:
                pixels = np.asarray(opened.convert("RGB"))
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise DataError(f"{file} is no readable image: {error}. Mend or remove it") from error
        room.add(pixels)
        out.append({"image": pixels, "label": kind})
    return out


class _Room:
    """Stops before decoded images fill the memory."""

    def __init__(self, count: int, where: str) -> None:
        import psutil

        self.count, self.where, self.used, self.seen = count, where, 0, 0
        self.limit = psutil.virtual_memory().available // 2

    def add(self, pixels: np.ndarray) -> None:
        self.used += pixels.nbytes
        self.seen += 1
        if self.used > self.limit:
            need = self.used / self.seen * self.count / 2**30
            raise DataError(
                f"{self.where}: {self.count} images take about {need:.1f} GiB in memory, half of what is free: "
                "make them smaller first (the model sees them scaled down anyway) or give fewer"
            )


def _npz(file: Path, image: str | None, label: str | None) -> dict[str, list[Example]]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"{file} cannot be read: {error}. Arrays of numbers or text only, no pickled objects"
        ) from error
    names = next((arrays[n] for n in _NAMES if n in arrays), None)
    images, labels = _by_split(arrays, image, _IMAGE), _by_split(arrays, label, _LABEL)
    shapes = ", ".join(f"{k} {v.shape}" for k, v in arrays.items()) or "nothing"
    if not images or set(images) != set(labels):
        raise DataError(
            f"{file} holds {shapes}; needed are images and labels, or x_train, y_train, x_test, y_test "
            "(other names: --image, --label)"
        )
    out: dict[str, list[Example]] = {}
    for split, pixels in images.items():
        numbers = np.squeeze(labels[split])
        if numbers.ndim != 1 or len(pixels) != len(numbers):
            raise DataError(f"{file}: {len(pixels)} images, but labels of shape {labels[split].shape}")
        values = numbers.tolist() if names is None else [str(names[int(n)]) for n in numbers]
        where = f"{file}, {split or 'image'}"
        out[split] = [
            {"image": rgb(p, f"{where} {i}"), "label": v} for i, (p, v) in enumerate(zip(pixels, values))
        ]
    return out


def _by_split(arrays: dict[str, np.ndarray], name: str | None, known: Sequence[str]) -> dict[str, np.ndarray]:
    if name is not None:
        return {"": arrays[name]} if name in arrays else {}
    found = {}
    for key, array in arrays.items():
        words = key.lower().split("_")
        split = next((role(w) for w in words if role(w)), None)
        if any(w in known for w in words) and len(words) == 1 + (split is not None):
            found[split or ""] = array
    return found


def _hub(name: str, image: str | None, label: str | None) -> dict[str, list[Example]]:
    from lightformers.tasks import hub

    return {
        split: list(_rows(part, image, label, f"{name} ({split or 'all'})"))
        for split, part in hub.load(name).items()
    }


def _rows(part: Any, image: str | None, label: str | None, where: str) -> Iterator[Example]:
    from lightformers.tasks import hub

    room = _Room(len(part), where)
    keys: tuple[str, str] | None = None
    for i, row in enumerate(hub.plain(part)):
        if keys is None:
            there = data.Rows([row], where)
            first = image or next((c for c in ("image", "img") if c in row), "image")
            second = label or next((c for c in ("label", "labels", "fine_label") if c in row), "label")
            there.column(first, "image"), there.column(second, "label")
            keys = first, second
        picture = row[keys[0]]
        pixels = rgb(
            np.asarray(picture.convert("RGB") if hasattr(picture, "convert") else picture),
            f"{where}, row {i + 1}",
        )
        room.add(pixels)
        yield {"image": pixels, "label": row[keys[1]]}
