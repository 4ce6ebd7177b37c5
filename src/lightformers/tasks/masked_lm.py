"""Masked language modelling: pseudo-perplexity of masked tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lightformers.errors import DataError, ModelError
from lightformers.stats import METRICS, Metric, Scores
from lightformers.tasks import common, pieces

if TYPE_CHECKING:
    from lightformers.bundle import Batch, Bundle, Encoded, Example

SHARE = 0.15  # of the tokens that are masked (Devlin et al., 2018, arXiv 1810.04805)


@dataclass
class MaskedLM:
    """Examples {"text"}; the metric is the perplexity of masked tokens, exp(sum of nats / number of masks).

    15 % of an example's tokens (one at least, never special ones) are masked, drawn from (seed, place of the
    example in its split). To evaluate, each becomes the mask token; to train, 80 % do, 10 % become another token
    and 10 % stay. Which tokens are masked depends on the tokenizer, so models with different vocabularies are
    scored on different positions of the same texts. `check(bundle)` must come first: it notes the mask's text.
    """

    splits: dict[str, list[Example]]
    seed: int = 0
    warnings: list[str] = field(default_factory=list)
    mask_text: str | None = None
    name: ClassVar[str] = "masked-lm"
    labels: ClassVar[None] = None

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        text: str = "text",
        group: str | None = None,
        max_words: int = 100,
        seed: int = 0,
    ) -> MaskedLM:
        """Read txt (cut into pieces by lines) or a table with a column of texts; see `CausalLM.from_file`."""
        splits, notes = pieces.from_file(path, text, group, max_words, seed)
        return cls(splits, seed, notes)

    @classmethod
    def from_examples(
        cls, examples: Mapping[str, Sequence[Example]] | Sequence[Example], seed: int = 0
    ) -> MaskedLM:
        """From {"text"} examples, taken as they are: one list (split here), or lists by split name."""
        splits, notes = pieces.from_examples(examples, seed)
        return cls(splits, seed, notes)

    @property
    def metric(self) -> Metric:
        return METRICS["perplexity"]

    @cached_property
    def fingerprint(self) -> str:
        return common.fingerprint(self.splits, {"task": self.name, "seed": self.seed})

    def reduce(self, outputs: Mapping[str, Any], batch: Batch) -> list[tuple[float, int]]:
        """(nats, masked tokens) per example; (0, 0) for examples without masks, as in a workload."""
        logits = torch.as_tensor(_logits(outputs))
        out = []
        for i, example in enumerate(batch.targets["examples"]):
            places, right = example.get("masked", []), example.get("originals", [])
            picked = logits[i, _shifted(batch, i, places)].float()
            nats = (
                torch.nn.functional.cross_entropy(picked, torch.tensor(right), reduction="sum")
                if right
                else 0.0
            )
            out.append((float(nats), len(right)))
        return out

    def set_reference(self, runner: common.Runner, splits: Sequence[str] = ("search", "verify")) -> None:
        """Nothing to note: the texts are the reference."""

    def evaluate(self, runner: common.Runner, split: str = "verify", limit: int | None = None) -> Scores:
        """(nats, masked tokens) per example."""
        index = common.take(self.splits, split, limit, self.seed)
        chosen = [self.splits[split][i] for i in index]
        special, mask = self._ids(runner.encode)
        encoded = [
            _masked(e, special, mask, np.random.default_rng((self.seed, int(i))), None)
            for e, i in zip(runner.encode(chosen), index)
        ]
        stats = np.array(runner.run(encoded, self.reduce), dtype=float)
        return Scores(stats, self.metric, common.groups(chosen))

    def _ids(self, encode: Callable[[Sequence[Example]], Sequence[Encoded]]) -> tuple[set[int], int]:
        """The special tokens and the mask token, as this model numbers them (a trimmed vocabulary has its own)."""
        if self.mask_text is None:
            raise DataError("the text of the mask token is not known yet: call task.check(bundle) first")
        empty, masked = encode([{"text": ""}, {"text": self.mask_text}])
        special = set(empty["input_ids"])
        ids = set(masked["input_ids"]) - special
        if len(ids) != 1:
            raise ModelError(
                f"the tokenizer takes {self.mask_text!r} for {len(ids)} tokens, not for its mask"
            )
        return special | ids, ids.pop()

    def collate(self, bundle: Bundle, examples: Sequence[Example], seed: int = 0) -> Batch:
        """Encode, mask (80 % mask, 10 % another token, 10 % left) and pad."""
        if self.mask_text is None:
            self.mask_text = getattr(bundle.processor, "mask_token", None)
        special, mask = self._ids(bundle.encode)
        vocabulary = bundle.model.get_input_embeddings().num_embeddings  # type: ignore[operator]
        rng = np.random.default_rng(seed)
        return bundle.pad([_masked(e, special, mask, rng, vocabulary) for e in bundle.encode(examples)])

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Mean nats per masked token of a batch from `collate`."""
        rows, places, right = [], [], []
        for i, example in enumerate(batch.targets["examples"]):
            masked = _shifted(batch, i, example.get("masked", []))
            rows += [i] * len(masked)
            places += masked
            right += example.get("originals", [])
        if not right:
            raise DataError("this batch holds no masks: make training batches with task.collate")
        logits = _logits(outputs)
        return torch.nn.functional.cross_entropy(
            logits[rows, places].float(), torch.tensor(right, device=logits.device)
        )

    def training_examples(self, use_labels: bool) -> list[Example]:
        """The same texts either way: a text is its own label."""
        return list(self.splits["train"])

    def calibration(self, n: int, seed: int = 0) -> list[Example]:
        return common.draw(self.splits["train"], n, seed, "calibration texts")

    def workload(self, n: int, seed: int = 0, lengths: common.Lengths = None) -> list[Example]:
        """Pieces of the search split in arrival order, unmasked. lengths: see `common.with_lengths`."""
        return common.with_lengths(self.splits["search"], n, seed, lengths)

    def check(self, bundle: Bundle) -> None:
        """Note the text of the mask token; ModelError where there is none."""
        common.check_head(bundle, self.name)
        self.mask_text = getattr(bundle.processor, "mask_token", None)
        if self.mask_text is None:
            raise ModelError("the model's tokenizer has no mask token: it is no masked language model")
        common.note(self.warnings, common.truncated(bundle, self.splits["verify"]))


def _masked(
    encoded: Encoded, special: set[int], mask: int, rng: np.random.Generator, vocabulary: int | None
) -> Encoded:
    """A copy with masks; "masked" holds their places, "originals" what stood there. vocabulary None: masks only."""
    ids = list(encoded["input_ids"])
    eligible = [i for i, token in enumerate(ids) if token not in special]
    count = min(max(round(SHARE * len(eligible)), 1), len(eligible))
    places = sorted(int(i) for i in rng.choice(eligible, count, replace=False)) if eligible else []
    originals = [ids[i] for i in places]
    for place in places:
        chance = rng.random() if vocabulary else 0.0
        if chance < 0.8:
            ids[place] = mask
        elif chance < 0.9 and vocabulary:
            ids[place] = int(rng.integers(vocabulary))
    return {**encoded, "input_ids": ids, "masked": places, "originals": originals}


def _shifted(batch: Batch, row: int, places: Sequence[int]) -> list[int]:
    """Places in the padded row, on whichever side the padding stands."""
    mask = batch.inputs.get("attention_mask")
    offset = int(mask[row].argmax()) if mask is not None and places else 0
    return [p + offset for p in places]


def _logits(outputs: Mapping[str, Any]) -> Any:
    if "logits" not in outputs:
        raise ModelError(
            f"the model gives {sorted(outputs)} and no logits: it has no language-modelling head"
        )
    return outputs["logits"]
