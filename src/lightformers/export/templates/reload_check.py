"""Opens an exported folder as anybody would, without lightformers, and compares it with what was recorded.

Run as `python reload_check.py SPEC.json`, in a process of its own. Prints one JSON object as its last line.
SPEC: folder, format ("transformers", "sentence-transformers", "openvino", "onnx", "lightformers"), task, output,
max_length, batch_size, rounds, threads, probes (a JSON file of texts, pairs or words, or an .npz of images or of the
model's inputs in batches),
expected (an .npy file with one row per probe).
"""

# mypy: ignore-errors

import json
import os
import sys
import time

sys.modules["openvino_telemetry"] = None  # nothing is posted
for name, value in (("HF_HUB_OFFLINE", "1"), ("TRANSFORMERS_VERBOSITY", "error"), ("TQDM_DISABLE", "1")):
    os.environ[name] = value

import numpy as np  # noqa: E402

AUTO = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "image-classification": "AutoModelForImageClassification",
}


def load_probes(path):
    if path.endswith(".npz"):
        held = np.load(path)
        if "sizes" in held.files:
            return {
                "batches": [batch_of(held, number) for number in range(len(held["sizes"]))],
                "sizes": held["sizes"],
            }
        return {"images": [held[f"image{i}"] for i in range(len(held.files))]}
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def batch_of(held, number):
    """The model's inputs of one batch: the entries "NUMBER.name"."""
    prefix = f"{number}."
    return {name[len(prefix) :]: held[name] for name in held.files if name.startswith(prefix)}


def processor_of(spec):
    from transformers import AutoImageProcessor, AutoTokenizer

    if "batches" in spec["probes"]:
        return None
    if "images" in spec["probes"]:
        return AutoImageProcessor.from_pretrained(spec["folder"])
    return AutoTokenizer.from_pretrained(spec["folder"])


def batches_of(spec, processor):
    """(indices, inputs as arrays) in batches of neighbours in length."""
    probes, size = spec["probes"], spec["batch_size"]
    if "batches" in probes:
        start = 0
        for inputs, count in zip(probes["batches"], probes["sizes"]):
            yield list(range(start, start + count)), inputs
            start += count
        return
    if "images" in probes:
        images = probes["images"]
        for start in range(0, len(images), size):
            chosen = list(range(start, min(start + size, len(images))))
            yield chosen, dict(processor(images=[images[i] for i in chosen], return_tensors="np"))
        return
    first = probes.get("words") or probes["texts"]
    limit = spec["max_length"]
    encoded = processor(
        first,
        probes.get("pairs"),
        truncation=limit is not None,
        max_length=limit,
        is_split_into_words="words" in probes,
        return_attention_mask=False,
    )
    lengths = [len(ids) for ids in encoded["input_ids"]]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    fill = processor.pad_token_id if processor.pad_token_id is not None else processor.eos_token_id or 0
    left = processor.padding_side == "left"
    avoid = set(spec.get("avoid_lengths", ()))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        width = max(lengths[i] for i in chosen)
        while width in avoid:
            width += 1
        inputs = {}
        for key in [k for k in ("input_ids", "token_type_ids") if k in encoded] + ["attention_mask"]:
            rows = np.full((len(chosen), width), fill if key == "input_ids" else 0, dtype=np.int64)
            for row, i in zip(rows, chosen):
                values = encoded[key][i] if key != "attention_mask" else 1
                if left:
                    row[width - lengths[i] :] = values
                else:
                    row[: lengths[i]] = values
            inputs[key] = rows
        yield chosen, inputs


def rows_of(output, inputs):
    """One vector per example: sequences are averaged over what is no padding, forecasts stay as they are."""
    output = np.asarray(output, dtype=np.float32)
    if "past_values" in inputs or output.ndim == 1:
        return output.reshape(len(output), -1)
    if output.ndim == 3:
        mask = (
            inputs["attention_mask"]
            if "attention_mask" in inputs
            else np.ones(output.shape[:2], dtype=np.int64)
        )
        return (output * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return output


def run(spec, processor, infer):
    """All probes through `infer(inputs) -> array`: (n, d)."""
    out = {}
    for chosen, inputs in batches_of(spec, processor):
        for i, row in zip(chosen, rows_of(infer(inputs), inputs)):
            out[i] = row
    return np.stack([out[i] for i in range(len(out))])


def pooled(states, mask, pooling):
    import torch

    weights = mask.unsqueeze(-1).to(states.dtype)
    if pooling["mode"] == "mean":
        out = (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    elif pooling["mode"] == "cls":
        out = states[:, 0]
    elif pooling["mode"] == "max":
        out = states.masked_fill(weights == 0, torch.finfo(states.dtype).min).amax(1)
    else:
        last = (torch.arange(mask.shape[1]) * mask).argmax(1)
        out = states[torch.arange(len(states)), last]
    return torch.nn.functional.normalize(out, dim=-1) if pooling["normalize"] else out


def transformers_runner(spec):
    import transformers

    auto = getattr(transformers, AUTO.get(spec["task"], "AutoModel"))
    if spec["task"] == "forecasting":  # no Auto class opens all of them
        with open(os.path.join(spec["folder"], "config.json"), encoding="utf-8") as file:
            auto = getattr(transformers, json.load(file)["architectures"][0])
    model, info = auto.from_pretrained(spec["folder"], output_loading_info=True, use_safetensors=True)
    missing = [key for key in info["missing_keys"] if "pooler" not in key and "position_ids" not in key]
    if missing:
        raise SystemExit(f"weights are missing: {', '.join(sorted(missing)[:5])}")
    return torch_runner(spec, model.eval(), processor_of(spec))


def lightformers_runner(spec):
    import lightformers

    bundle = lightformers.load(spec["folder"])
    return torch_runner(spec, bundle.model.eval(), bundle.processor)


def torch_runner(spec, model, processor):
    import torch

    def infer(inputs):
        tensors = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in inputs.items()}
        with torch.inference_mode():
            output = model(**tensors)
            if spec["pooling"]:
                return pooled(output.last_hidden_state, tensors["attention_mask"], spec["pooling"]).numpy()
            name = spec["output"] if spec["output"] in output else f"{spec['output']}_outputs"
            return output[name].float().numpy()

    return lambda: run(spec, processor, infer)


def sentence_transformers_runner(spec):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(spec["folder"], device="cpu")
    # no prompt: the recorded texts have theirs already
    return lambda: model.encode(
        spec["probes"]["texts"], batch_size=spec["batch_size"], prompt="", show_progress_bar=False
    )


def openvino_runner(spec):
    import openvino

    folder = os.path.join(spec["folder"], "openvino")
    with open(os.path.join(folder, "deploy.json"), encoding="utf-8") as file:
        deploy = json.load(file)
    spec["avoid_lengths"] = deploy.get("avoid_lengths", [])
    processor = processor_of(spec)
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(os.path.join(folder, "openvino_model.xml")), "CPU", deploy["properties"]
    )
    names = [name for name in deploy["inputs"] if any(name in port.get_names() for port in compiled.inputs)]

    # one batch more than streams is under way; the oldest is waited for, without callbacks
    requests = [compiled.create_infer_request() for _ in range(deploy["streams"] + 1)]

    def everything():
        out, under_way = {}, []

        def take():
            request, chosen, inputs = under_way.pop(0)
            request.wait()
            for i, row in zip(chosen, rows_of(request.get_tensor(deploy["output"]).data, inputs)):
                out[i] = row.copy()
            return request

        free = list(requests)
        for chosen, inputs in batches_of(spec, processor):
            request = free.pop() if free else take()
            request.start_async({name: inputs[name] for name in names})
            under_way.append((request, chosen, inputs))
        while under_way:
            take()
        return np.stack([out[i] for i in range(len(out))])

    if os.path.exists(os.path.join(folder, "export.json")):
        spec["also"] = exported_model(spec, processor, folder, deploy, names)
    return everything


def exported_model(spec, processor, folder, deploy, names):
    """The same folder through transformers' own door."""
    import torch
    from transformers.exporters import ExportedModel

    model = ExportedModel.from_pretrained(folder, device="cpu", config=deploy["properties"])

    def infer(inputs):
        return model(**{name: torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in names})[
            deploy["output"]
        ].numpy()

    return run(spec, processor, infer)


def onnx_runner(spec):
    import onnxruntime

    folder = os.path.join(spec["folder"], "onnx")
    with open(os.path.join(folder, "deploy.json"), encoding="utf-8") as file:
        output = json.load(file)["output"]
    options = onnxruntime.SessionOptions()
    if spec["threads"]:
        options.intra_op_num_threads = spec["threads"]
    session = onnxruntime.InferenceSession(
        os.path.join(folder, "model.onnx"), options, ["CPUExecutionProvider"]
    )
    names = [port.name for port in session.get_inputs()]
    processor = processor_of(spec)
    return lambda: run(
        spec, processor, lambda inputs: session.run([output], {name: inputs[name] for name in names})[0]
    )


RUNNERS = {
    "transformers": transformers_runner,
    "sentence-transformers": sentence_transformers_runner,
    "openvino": openvino_runner,
    "onnx": onnx_runner,
    "lightformers": lightformers_runner,
}


def compare(got, expected):
    if got.shape != expected.shape:
        raise SystemExit(f"outputs have shape {got.shape}, recorded were {expected.shape}")
    if not np.isfinite(got).all():
        raise SystemExit("outputs hold NaN or infinity")
    norms = np.maximum(np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1), 1e-12)
    return float(np.abs(got - expected).max()), float(((got * expected).sum(1) / norms).min())


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        spec = json.load(file)
    spec["probes"] = load_probes(spec["probes"])
    expected = np.load(spec["expected"])
    if spec["threads"]:
        import torch

        torch.set_num_threads(spec["threads"])
    everything = RUNNERS[spec["format"]](spec)
    difference, cosine = compare(everything(), expected)
    if "also" in spec:
        difference, cosine = (
            max(difference, compare(spec["also"], expected)[0]),
            min(cosine, compare(spec["also"], expected)[1]),
        )
    seconds = []
    for _ in range(spec["rounds"]):
        start = time.perf_counter()
        everything()
        seconds.append(time.perf_counter() - start)
    clean = spec["format"] == "lightformers" or "lightformers" not in sys.modules
    result = {
        "max_difference": difference,
        "scale": float(np.abs(expected).max()),
        "cosine": cosine,
        "throughput": len(expected) / min(seconds),
        "without_lightformers": clean,
        "by_exported_model": "also" in spec,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
