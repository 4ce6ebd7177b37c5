"""A folder that plain transformers (and sentence-transformers) opens: safetensors, config, processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from lightformers import manifest
from lightformers.bundle import Bundle, Pooling
from lightformers.errors import ModelError
from lightformers.export.folder import filling
from lightformers.files import write_json
from lightformers.telemetry import quiet

_MODES = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "last": "pooling_mode_lasttoken",
}
#: What an export of a model writes; old ones among them go when a new export comes.
OWNED = (
    "config.json", "generation_config.json", "model*.safetensors*", "lightformers.json", "modules.json",
    "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling", "2_Normalize",
    "tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "spiece.model", "preprocessor_config.json",
    "processor_config.json", "processor.safetensors", "chat_template.jinja",
)  # fmt: skip


def native_reasons(model: nn.Module) -> list[str]:
    """Why plain transformers cannot open this model as it is; empty if it can.

    Two witnesses: what anatomy knows of the family, and a comparison with the model that the config builds.
    """
    from lightformers import anatomy

    if own := getattr(model, "beyond_transformers", ""):
        return [own]
    if reasons := list(anatomy.native_reasons(model)):
        return reasons
    try:
        found = manifest.structure(model)
    except ModelError as error:
        return [str(error)]
    found.removed = [
        path for path in found.removed if path.rpartition(".")[2] != "pooler"
    ]  # nothing reads it
    return found.reasons()


def save(bundle: Bundle, folder: str | Path, allow_custom: bool = False) -> list[str]:
    """Write `bundle` into `folder`; other files that stand there are left alone.

    Returns the reasons why plain transformers cannot open the result: empty, unless `allow_custom` permitted a form
    that only `lightformers.load` opens (weights, config and `lightformers.json`). Raises ModelError where the model
    needs that form and it is not allowed.
    """
    model: Any = bundle.model
    if not hasattr(model, "save_pretrained"):
        raise ModelError(
            f"{type(model).__name__} is no transformers model: it cannot be saved as a Hugging Face folder"
        )
    reasons = native_reasons(model)
    if reasons and not allow_custom:
        raise ModelError(
            "plain transformers cannot open this model: "
            + "; ".join(reasons[:5])
            + (f" (and {len(reasons) - 5} more)" if len(reasons) > 5 else "")
            + ". Allow a folder that only lightformers.load opens with --allow-custom (allow_custom=True)"
        )
    with filling(folder, OWNED) as new, quiet():
        if reasons:
            _save_custom(model, new)
        else:
            model.save_pretrained(new)
        if bundle.processor is not None:
            bundle.processor.save_pretrained(new)
        if bundle.pooling is not None:
            _sentence_transformers_files(bundle, bundle.pooling, new)
    return reasons


def _save_custom(model: Any, folder: Path) -> None:
    manifest.write_manifest(model, folder)
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    # Without this, plain transformers would open the folder, fill what it does not know with random numbers and only
    # warn. A quantization config without a method makes it raise.
    config["quantization_config"] = {"lightformers": "open this folder with lightformers.load"}
    write_json(folder / "config.json", json.loads(json.dumps(config, default=str)))
    if model.can_generate() and getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)


def _sentence_transformers_files(bundle: Bundle, pooling: Pooling, folder: Path) -> None:
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")] + [
        ("2_Normalize", "Normalize")
    ] * pooling.normalize
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    config: Any = bundle.model.config
    modes = {key: mode == pooling.mode for mode, key in _MODES.items()}
    write_json(
        folder / "1_Pooling" / "config.json", {"word_embedding_dimension": config.hidden_size, **modes}
    )
    if pooling.normalize:
        (folder / "2_Normalize").mkdir()
    limit = {"max_seq_length": bundle.max_length, "do_lower_case": False}
    write_json(folder / "sentence_bert_config.json", limit)
    kept = {"similarity_fn_name": "cosine", "default_prompt_name": None, **_source_settings(bundle)}
    write_json(
        folder / "config_sentence_transformers.json",
        {**kept, "prompts": dict(bundle.prompts), "model_type": "SentenceTransformer"},
    )


def _source_settings(bundle: Bundle) -> dict[str, Any]:
    """What the original said of similarity and the default prompt, where its folder is at hand."""
    path = Path(bundle.source or "") / "config_sentence_transformers.json"
    if not bundle.source or not path.is_file():
        return {}
    held = json.loads(path.read_text(encoding="utf-8"))
    return {k: held[k] for k in ("similarity_fn_name", "default_prompt_name") if held.get(k)}
