import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "runners"))
from runner_models import bundle, per_example, texts

from lightformers import measure
from lightformers.errors import UserError
from lightformers.measure.explain import Facts, sentences
from lightformers.measure.machine import parse_cpuinfo, parse_sysctl
from lightformers.runners import build
from lightformers.steps import Deploy


class Clock:
    """Time that passes only when a call says so."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self):
        return self.now

    def call(self, name, seconds):
        def run():
            self.log.append(name)
            self.now += seconds() if callable(seconds) else seconds

        return run


def test_compare_interleaves_and_warms_up():
    clock = Clock()
    calls = {name: clock.call(name, cost) for name, cost in (("a", 2.0), ("b", 1.0), ("c", 3.0))}
    found = measure.compare(calls, rounds=3, warmup=2, clock=clock)
    assert clock.log == list("aabbcc") + list("abc") + list("bca") + list("cab")
    assert found["a"].seconds == (2.0,) * 3 and found["c"].median == 3.0


def test_drift_of_the_machine_cancels_in_the_paired_ratio():
    """A machine that slows down five times must not make the later one look slow."""
    clock = Clock()
    drift = iter(x for x in range(1, 99))
    slow = clock.call("slow", lambda: 2.0 * (1 + next(drift) // 8))
    fast = clock.call("fast", lambda: 1.0 * (1 + next(drift) // 8))
    found = measure.compare({"slow": slow, "fast": fast}, rounds=16, warmup=0, clock=clock)
    ratio = measure.paired(found["slow"], found["fast"])
    assert ratio.estimate == pytest.approx(2.0) and ratio.low > 1.5 and ratio.high < 2.5


def test_timing_quantiles_and_order():
    timing = measure.Timing(tuple(float(i) for i in range(11)))
    assert (timing.min, timing.median) == (0.0, 5.0)
    assert timing.quantiles == {"p10": 1.0, "p50": 5.0, "p90": 9.0}


def test_unpaired_timings_are_refused():
    with pytest.raises(ValueError, match="not paired"):
        measure.paired(measure.Timing((1.0, 2.0)), measure.Timing((1.0,)))


def test_workload_can_leave_tokenization_out():
    mine = bundle()
    runner = build(mine, Deploy())
    for counted, calls in ((True, 4), (False, 1)):
        mine.processor.calls = 0
        load = measure.Workload(texts(), count_tokenization=counted)
        measure.time_runners({"it": runner}, load, per_example, rounds=3, warmup=1)
        assert mine.processor.calls == calls


def test_arrivals_bound_what_a_runner_may_sort():
    sizes = []
    load = measure.Workload(texts(), batch_size=5)
    runner = build(bundle(), Deploy(batching="sorted", batch_size=64))
    measure.time_runners(
        {"it": runner}, load, lambda o, b: [sizes.append(0)] * len(b.inputs["input_ids"]), 1, 0
    )
    assert len(sizes) == 3


def test_throughput_counts_real_tokens():
    mine = bundle()
    runner = build(mine, Deploy())
    load = measure.Workload(texts())
    speed = measure.throughput(measure.Timing((2.0,)), load, runner)
    assert speed == {
        "examples_per_second": 6.5,
        "tokens_per_second": sum(len(e["input_ids"]) for e in runner.encode(texts())) / 2,
    }


def test_latencies_are_taken_in_turn_on_each_example():
    seen = []
    calls = {n: (lambda e, n=n: seen.append((n, e["text"]))) for n in ("a", "b")}
    found = measure.latencies(calls, [{"text": "x"}, {"text": "y"}], warmup=0)
    assert seen == [("a", "x"), ("b", "x"), ("a", "y"), ("b", "y")]
    assert {n: len(t.seconds) for n, t in found.items()} == {"a": 2, "b": 2}


def test_latency_runs_every_example_alone():
    seen = []
    timing = measure.latency(
        build(bundle(), Deploy()), texts(4), lambda o, b: [seen.append(len(o["embedding"]))]
    )
    assert set(seen) == {1} and len(timing.seconds) == 4


def test_flops_of_a_linear_layer():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 8)

        def forward(self, x):
            return {"logits": self.layer(x)}

    from lightformers.bundle import Batch

    assert measure.flops(Two(), Batch({"x": torch.randn(4, 16)}, {})) == 2 * 4 * 16 * 8


def test_size_counts_files_under_a_folder(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 10)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_bytes(b"x" * 5)
    assert measure.size_on_disk(tmp_path) == 15 and measure.size_on_disk(tmp_path / "a") == 10
    with pytest.raises(UserError, match="nothing stands"):
        measure.size_on_disk(tmp_path / "none")


def _hold(megabytes):
    return bytearray(b"x" * megabytes * 2**20)


@pytest.mark.slow
def test_peak_memory_of_a_call_in_its_own_process():
    small, large = measure.peak_memory(_hold, 1), measure.peak_memory(_hold, 300)
    assert 250 * 2**20 < large - small < 700 * 2**20
    with pytest.raises(UserError, match="failed"):
        measure.peak_memory(_hold, "not a number")


def test_own_peak_does_not_fall():
    before = measure.peak_memory()
    held = torch.ones(40 * 2**18)
    assert measure.peak_memory() >= before > 2**20 and held.sum() > 0


def test_machine_has_its_keys_and_is_plain():
    import json

    facts = json.loads(json.dumps(measure.machine()))
    keys = {
        "cpu",
        "cores",
        "isa",
        "memory_bytes",
        "versions",
        "architecture",
        "system",
        "python",
        "threads",
        "blas",
    }
    assert keys <= set(facts)
    assert {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"} <= set(facts["isa"])
    assert facts["cores"]["usable"] >= 1 and facts["versions"]["torch"]
    facts["isa"]["avx2"] = "changed"
    assert measure.machine()["isa"]["avx2"] != "changed"


def test_processor_texts_of_other_systems():
    x86 = "processor : 0\nmodel name\t: Fast 9000\nflags\t\t: fpu avx2 amx_int8\n\nprocessor : 1\n"
    assert parse_cpuinfo(x86) == (frozenset({"fpu", "avx2", "amx_int8"}), "Fast 9000")
    assert "asimddp" in parse_cpuinfo("Features\t: fp asimd asimddp i8mm\n")[0]
    mac = "machdep.cpu.brand_string: Apple M2\nhw.optional.arm.FEAT_I8MM: 1\nhw.optional.arm.FEAT_BF16: 0\n"
    assert parse_sysctl(mac) == (frozenset({"i8mm"}), "Apple M2")
    intel = "machdep.cpu.leaf7_features: BMI1 AVX2 SMEP\n"
    assert "avx2" in parse_sysctl(intel)[0]


def test_fingerprints():
    assert measure.machine_fingerprint() == measure.machine_fingerprint()
    a, b = bundle("bert").model, bundle("bert").model
    assert measure.model_fingerprint(a) == measure.model_fingerprint(b)
    with torch.no_grad():
        next(b.parameters()).view(-1)[0] += 1e-3
    assert measure.model_fingerprint(a) != measure.model_fingerprint(b)


@pytest.mark.parametrize("name", ["bert", "bert-classifier", "gpt2", "llama"])
def test_profile_finds_the_slow_part(name):
    """A feed-forward that sleeps must show up as the feed-forward of its block."""
    from lightformers import anatomy

    mine = bundle(name)
    path = anatomy.of(mine.model).blocks[1].feed_forward.down
    handle = mine.model.get_submodule(path).register_forward_hook(lambda *_: time.sleep(0.05))
    rows = measure.profile(mine, mine.collate(texts(3)), rounds=1)
    handle.remove()
    worst = max(rows, key=lambda r: r["ms"])
    assert (worst["name"], worst["kind"]) == ("block 1 feed-forward", "feed-forward") and worst["ms"] > 45
    assert sum(r["share"] for r in rows) == pytest.approx(1)
    assert {"embeddings", "attention", "feed-forward", "norm"} <= {r["kind"] for r in rows}
    assert ("head" in {r["kind"] for r in rows}) == (name != "bert")


def test_profile_of_openvino_names_blocks_and_kernels():
    pytest.importorskip("openvino")
    runner = build(bundle(), Deploy("openvino"))
    rows = measure.profile_openvino(runner, texts(), rounds=1)
    assert {"block 0", "block 1"} <= {r["name"] for r in rows}
    assert "matrix products" in {r["kind"] for r in rows}
    assert sum(r["share"] for r in rows) == pytest.approx(1)


FACTS = dict(  # noqa: C408
    seconds=2.0, tokenization=0.25, padding_work=0.0, padding=0.4, products=0.5, work=150.0, peak=1000.0,
    peak_precision="bf16", batches=10, tokens=5000, weights=10**6, bandwidth=1e10, cores=2,
    isa={"avx2": True, "avx512_vnni": True, "amx_int8": False}, precision="int8", other=(("norms", 0.3),),
)  # fmt: skip


def test_sentences_carry_their_numbers():
    said = "\n".join(sentences(Facts(**FACTS)))
    assert "100 GFLOP/s, 10 % of the 1000" in said  # 150 GFLOP in 2 s less a quarter
    assert "40 % of the tokens computed are padding" in said
    assert "50 % of the forward is not matrix products (norms 30 %)" in said
    assert "Tokenization takes 25 %" in said
    assert "no AMX" in said and "VNNI" not in said
    assert "Memory-bound" not in said


def test_sentences_say_only_what_holds():
    calm = {
        **FACTS,
        "padding": 0.0,
        "tokenization": 0.0,
        "products": None,
        "isa": {"avx2": True, "amx_int8": True},
    }
    said = "\n".join(sentences(Facts(**calm)))
    assert "padding" not in said and "Tokenization" not in said and "AMX" not in said
    heavy = {**calm, "weights": 10**9, "batches": 16, "tokens": 160}
    said = "\n".join(sentences(Facts(**heavy)))
    assert "1000 MB of weights 16 times at the 10 GB/s of this machine would alone take 80 %" in said
    assert "10 tokens on average" in said


def test_why_not_faster_measures_a_runner():
    mine = bundle()
    said = measure.why_not_faster(build(mine, Deploy(batch_size=4)), mine, texts(), per_example, rounds=1)
    assert any("GFLOP/s" in s for s in said) and any("padding" in s for s in said)


def test_peaks_are_positive_and_kept():
    found = measure.peaks()
    assert found.gflops["fp32"] > 0.1 and found.bandwidth > 1e7 and measure.peaks() is found
