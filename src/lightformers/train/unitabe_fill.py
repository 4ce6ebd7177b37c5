"""Missing cells filled by asking a UniTabE for them: "recovery COLUMN :"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightformers.bundle import Bundle
from lightformers.errors import DataError, ModelError
from lightformers.models.tabular.unitabe import UniTabE
from lightformers.parts.prompt_decoder import Memory
from lightformers.processors import word_pieces
from lightformers.processors.schema import Cell, Row, missing
from lightformers.processors.unitabe import RECOVER, UniTabEProcessor, padded
from lightformers.train.table_objectives import given


@torch.no_grad()
def fill(
    bundle: Bundle, rows: Sequence[Row], columns: Sequence[str] | None = None, batch: int = 64
) -> list[dict[str, Cell]]:
    """New rows in which every missing cell (None, NaN, blank) of `columns` (None: of all) has a value.

    A column of numbers gets one that is written digit by digit, a column of few known values the likeliest of them, others
    free text. Cells where nothing readable was written stay None. Raises DataError for a row without a single value, from
    which nothing can be recovered, and for columns that no row has; ModelError for a bundle of another model.
    """
    if not isinstance(bundle.model, UniTabE) or not isinstance(bundle.processor, UniTabEProcessor):
        raise ModelError("filling cells needs a UniTabE and its processor")
    known = {name for row in rows for name in row}
    if columns is not None and (strange := [name for name in columns if name not in known]):
        raise DataError(f"no row has a column {', '.join(strange)}")
    wanted = known if columns is None else set(columns)
    if (empty := next((i for i, row in enumerate(rows) if all(map(missing, row.values()))), None)) is not None:  # fmt: skip
        raise DataError(f"row {empty} has no value at all: nothing can be recovered from it")
    out: list[dict[str, Cell]] = [dict(row) for row in rows]
    asked = [(i, name) for i, row in enumerate(rows) for name, cell in row.items() if name in wanted and missing(cell)]  # fmt: skip
    training = bundle.model.training
    bundle.model.eval()
    try:
        for at in range(0, len(asked), batch):
            cut = asked[at : at + batch]
            for (i, name), value in zip(cut, _values(bundle.model, bundle.processor, rows, cut)):
                out[i][name] = value
    finally:
        bundle.model.train(training)
    return out


def _values(
    model: UniTabE, processor: UniTabEProcessor, rows: Sequence[Row], asked: Sequence[tuple[int, str]]
) -> list[Cell]:
    places = {i: place for place, i in enumerate(dict.fromkeys(i for i, _ in asked))}
    batch, _ = processor.pad_encoded(processor.encode_examples([{"row": rows[i]} for i in places]))
    prompts = padded([processor.prompt(RECOVER, name) for _, name in asked], processor.token(word_pieces.PAD))
    states, seen = model.encode(**{k: v.to(model.device) for k, v in batch.items()})
    rank = torch.tensor([places[i] for i, _ in asked], device=model.device)
    h, c = model.ask(prompts.to(model.device), states[rank], seen[rank])
    return [_value(model, processor, name, (h[k : k + 1], c[k : k + 1])) for k, (_, name) in enumerate(asked)]


def _value(model: UniTabE, processor: UniTabEProcessor, name: str, memory: Memory) -> Cell:
    kind, values = processor.kind(name)
    if values:
        best = values[int(likelihoods(model, processor, values, memory).argmax())]
        return int(best) if values == ("0", "1") else best
    end = processor.token(word_pieces.END)
    numerals = [processor.token(c) for c in word_pieces.NUMERALS]
    allowed = torch.tensor([*numerals, end], device=model.device) if kind == "number" else None
    said: list[int] = model.say(memory, 24 if kind == "number" else processor.max_tokens, allowed)[0].tolist()
    said = said[: said.index(end)] if end in said else said
    text = processor.said(said)
    if kind != "number":
        return text or None
    try:
        return float(text)
    except ValueError:
        return None


def likelihoods(model: UniTabE, processor: UniTabEProcessor, values: Sequence[str], memory: Memory) -> Tensor:
    """(values,) log-probabilities that exactly this is answered. memory: of one row and prompt."""
    texts = [processor.tokens(v) for v in values]
    read, said = (x.to(model.device) for x in given([t[: processor.max_tokens] for t in texts], processor))
    y = model.decoder(
        model.unit.words(read), (memory[0].expand(len(read), -1), memory[1].expand(len(read), -1))
    )
    chances = (y @ model.unit.words.weight.T).float().log_softmax(-1)
    picked = chances.gather(-1, said.clamp(min=0)[..., None])[..., 0]
    return picked.masked_fill(said < 0, 0.0).sum(-1)
