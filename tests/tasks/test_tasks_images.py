from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from tasks_fakes import FakeRunner, bundle

from lightformers.errors import DataError, MissingExtra
from lightformers.tasks import ImageClassification, from_data, images


def _pixels(n: int, seed: int = 0, shape=(6, 5, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def test_npz(tmp_path) -> None:
    file = tmp_path / "a.npz"
    np.savez(file, images=_pixels(60), labels=np.arange(60) % 3)
    task = from_data("image-classification", file)
    assert task.labels == ("0", "1", "2") and {k: len(v) for k, v in task.splits.items()}["verify"] == 15
    assert Counter(e["label"] for e in task.splits["verify"]) == {0: 5, 1: 5, 2: 5}
    fingerprint = task.fingerprint
    np.savez(file, x_train=_pixels(60), y_train=(np.arange(60) % 2)[:, None], x_test=_pixels(10, 1), y_test=np.arange(10) % 2,
             classes=np.array(["cat", "dog"]))  # fmt: skip
    task = from_data("image-classification", file, bundle=bundle("image-classification", ["DOG", "CAT"]))
    assert len(task.splits["verify"]) == 10 and task.splits["verify"][0]["label"] == 1
    assert task.fingerprint != fingerprint
    right = FakeRunner(lambda e: {"logits": np.eye(2)[e["label"]]})
    assert task.evaluate(right).value == 1
    assert set(task.training_examples(False)[0]) == {"image"} == set(task.workload(2)[0])
    with pytest.raises(DataError, match="no lengths in words"):
        task.workload(2, lengths=(1, 2))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros(3)}, r"holds a \(3,\); needed are images and labels"),
        ({"images": _pixels(4), "labels": np.zeros(3)}, "4 images, but labels of shape"),
        ({"images": np.zeros((2, 5, 6, 7)), "labels": np.arange(2)}, r"got \(5, 6, 7\)"),
        ({"images": np.full((2, 4, 4), -1.0), "labels": np.arange(2)}, "pixels run from"),
        ({"images": np.full((2, 4, 4), np.nan), "labels": np.arange(2)}, "NaN or infinity"),
        ({"images": _pixels(4), "labels": np.zeros(4)}, "one class only"),
        ({"images": np.array([None]), "labels": np.zeros(1)}, "no pickled objects"),
    ],
)
def test_wrong_npz(tmp_path, arrays, message) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        from_data("image-classification", tmp_path / "a.npz")


def test_every_kind_of_image_becomes_rgb() -> None:
    grey = np.array([[0, 255]], np.uint8)
    assert images.rgb(grey, "").tolist() == [[[0] * 3, [255] * 3]]
    assert (
        images.rgb(grey / 255.0, "").tolist()
        == images.rgb(grey, "").tolist()
        == images.rgb(grey > 9, "").tolist()
    )
    assert images.rgb(_pixels(1, shape=(3, 8, 9))[0], "").shape == (8, 9, 3)
    assert images.rgb(_pixels(1, shape=(8, 9, 4))[0], "").shape == (8, 9, 3)


def test_folders(tmp_path) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs pillow, the extra [vision]")
    for split, n in {"train": 20, "val": 6, "test": 8}.items():
        for kind in ("ant", "bee"):
            folder = tmp_path / split / kind
            folder.mkdir(parents=True)
            for i, pixels in enumerate(_pixels(n, 100 * len(split) + ord(kind[0]))):
                picture = image.fromarray(pixels)
                (picture.convert("L") if i % 2 else picture).save(folder / f"{i}.{'jpg' if i % 3 else 'png'}")
    task = from_data("image-classification", tmp_path)
    assert task.labels == ("ant", "bee")
    assert {k: len(v) for k, v in task.splits.items()} == {"train": 40, "search": 12, "verify": 16}
    assert task.splits["train"][0]["image"].shape == (6, 5, 3)
    single = from_data("image-classification", tmp_path / "train")
    assert sum(map(len, single.splits.values())) == 40
    (tmp_path / "train" / "ant" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png is no readable image"):
        from_data("image-classification", tmp_path)


def test_folder_errors(tmp_path, monkeypatch) -> None:
    with pytest.raises(DataError, match="there is no file or folder"):
        from_data("image-classification", tmp_path / "absent.npz")
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DataError, match=r"a folder of class folders, an \.npz file or a hub name"):
        from_data("image-classification", tmp_path / "a.csv")
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    (tmp_path / "ant").mkdir()
    with pytest.raises(MissingExtra, match=r"lightformers\[vision\]"):
        from_data("image-classification", tmp_path)


def test_examples_and_duplicates() -> None:
    rows = [{"image": p, "label": "ab"[i % 2]} for i, p in enumerate(_pixels(40))]
    task = ImageClassification.from_examples(
        {"train": rows, "valid": rows[:4], "test": rows[4:10]}, metric="macro-f1"
    )
    assert len(task.splits["train"]) == 30 and task.metric.name == "macro-f1"
    assert "10 from train" in task.warnings[0]
