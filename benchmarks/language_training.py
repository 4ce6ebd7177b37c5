"""The plain decoder beside what is written or taken without us: its training, and its speech.

The trainer by hand is what somebody writes who wants speed and nothing else, for one form of model: torch's fused
attention, bf16 autocast where it pays, fused AdamW, clipped gradients, batches that lie ready.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from language_rows import OURS
from torch import Tensor, nn
from torch.nn import functional as F

from lightformers import measure

BY_HAND = "by hand"
PRESETS = ("transformer-10m",)
CONTEXTS = (128, 2048)
LR, DECAY, BETAS, CLIP = 1e-3, 0.1, (0.9, 0.95), 1.0


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.RMSNorm(width, eps=1e-5) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = (
            nn.Linear(width, 2 * hidden, bias=False),
            nn.Linear(hidden, width, bias=False),
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, n, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = (turned(y, cos.to(y.dtype), sin.to(y.dtype)) for y in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, n, width))
        gate, up = self.up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Plain(nn.Module):
    """A Llama of one file. (batch, n) tokens -> (batch, n, words) logits."""

    def __init__(self, words: int, width: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.size = width // heads
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        angle = torch.arange(ids.shape[1])[:, None] * 1e4 ** (-torch.arange(0, self.size, 2) / self.size)
        x, cos, sin = self.embedding(ids), angle.cos(), angle.sin()
        for block in self.blocks:
            x = block(x, cos, sin)
        return F.linear(self.norm(x), self.embedding.weight)


def by_hand(model: nn.Module, texts: Sequence[Tensor], steps: int, half: bool = True) -> float:
    """Trains on the texts (batch, n + 1) in turn; the last loss."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)
    for step in range(steps):
        text = texts[step % len(texts)]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = model(text[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def by_fit(model: nn.Module, texts: Sequence[Tensor], steps: int, precision: str) -> float:
    """The same by `train.fit`, with the loss of `lightformers train`."""
    from lightformers.bundle import Batch
    from lightformers.pretrain.run import following
    from lightformers.train import Settings, fit

    batches = [Batch({"input_ids": t[:, :-1]}, {"following": t[:, 1:]}) for t in texts]
    settings = Settings(steps=steps, lr=LR, weight_decay=DECAY, betas=BETAS, clip=CLIP, precision=precision)  # type: ignore[arg-type]
    return fit(model, batches, following, settings).losses[-1]


def calls(preset: str, batch: int, length: int, steps: int) -> dict[str, Callable[[], float]]:
    """Each trainer's `steps` updates of a model of its own that goes on learning from call to call."""
    import lightformers as lf
    from lightformers.compress.distill.common import precision
    from lightformers.steps import Run

    torch.manual_seed(0)
    ours: Any = lf.create_model(preset)
    first = ours.config.layers[0]
    plain = Plain(
        ours.config.vocab_size, ours.config.hidden_size, len(ours.layers), first["mixer"]["heads"], first["ffn"]["hidden"]
    )  # fmt: skip
    assert sum(p.numel() for p in plain.parameters()) == ours.num_parameters()
    texts = [torch.randint(ours.config.vocab_size, (batch, length + 1)) for _ in range(4)]
    return {
        OURS: lambda: by_fit(ours, texts, steps, precision(Run())),
        BY_HAND: lambda: by_hand(plain, texts, steps, precision(Run()) != "fp32"),
    }


def training(
    preset: str = PRESETS[0], batch: int = 16, length: int = 256, steps: int = 4, rounds: int = 10
) -> dict[str, Any]:
    """Tokens per second of both, and how many times as fast ours is."""
    times = measure.compare(calls(preset, batch, length, steps), rounds, warmup=1)
    return {
        "batch": batch,
        "length": length,
        "tokens per second": {k: batch * length * steps / t.median for k, t in times.items()},
        "faster": vars(measure.paired(times[BY_HAND], times[OURS])),
    }


@torch.no_grad()
def speaking(
    preset: str = PRESETS[0], contexts: Sequence[int] = CONTEXTS, tokens: int = 32, rounds: int = 10
) -> dict[str, Any]:
    """Seconds per token of `generate` after a prompt, and how many times as fast as transformers' Llama ours is.

    What a call with one token takes is taken off, so the prompt and the start of `generate` do not count.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    import lightformers as lf
    from lightformers.models.language.convert import from_transformers

    with torch.device("meta"):
        form: Any = lf.create_model(preset).config
    layer = form.layers[0]
    config = LlamaConfig(
        vocab_size=form.vocab_size, hidden_size=form.hidden_size, intermediate_size=layer["ffn"]["hidden"],
        num_hidden_layers=len(form.layers), num_attention_heads=layer["mixer"]["heads"], tie_word_embeddings=True,
        num_key_value_heads=layer["mixer"]["kv_heads"], max_position_embeddings=max(contexts) + tokens, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(config).eval()
    models = {OURS: from_transformers(theirs), "transformers": theirs}
    found: dict[str, Any] = {"seconds per token": {}, "faster": {}}
    for context in contexts:
        ids = torch.randint(1, form.vocab_size, (1, context))
        said = {name: _say(model, ids, tokens) for name, model in models.items()}
        if not torch.equal(*said.values()):
            raise RuntimeError("the two models say different things, so their times are not comparable")
        long = measure.compare({k: partial(_say, m, ids, tokens) for k, m in models.items()}, rounds)
        short = measure.compare({k: partial(_say, m, ids, 1) for k, m in models.items()}, rounds)
        each = {k: (long[k].median - short[k].median) / (tokens - 1) for k in models}
        found["seconds per token"][str(context)] = each
        found["faster"][str(context)] = each["transformers"] / each[OURS]
    return found


def _say(model: Any, ids: Tensor, tokens: int) -> Tensor:
    return model.generate(  # type: ignore[no-any-return]
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0
    )  # fmt: skip


def page(result: dict[str, Any]) -> list[str]:
    """Both tables, as far as they were measured."""
    lines: list[str] = []
    for preset, t in result.get("training", {}).items():
        speed, r = t["tokens per second"], t["faster"]
        lines += [
            "",
            "## Training",
            "",
            f"{preset}, batches of {t['batch']} texts of {t['length']} tokens.",
            "",
            "| preset | tokens per second | by hand | times as fast | asked |",
            "|---|---|---|---|---|",
            f"| {preset} | {speed[OURS]:.0f} | {speed[BY_HAND]:.0f} | {r['estimate']:.2f} [{r['low']:.2f}, {r['high']:.2f}] | 1 |",
        ]
    for preset, t in result.get("speaking", {}).items():
        lines += [
            "",
            "## Speaking",
            "",
            "| preset | tokens so far | ms per token | transformers | times as fast |",
            "|---|---|---|---|---|",
        ]
        for context, each in t["seconds per token"].items():
            lines.append(
                f"| {preset} | {context} | {1e3 * each[OURS]:.2f} | {1e3 * each['transformers']:.2f} | {t['faster'][context]:.2f} |"
            )
    return lines
