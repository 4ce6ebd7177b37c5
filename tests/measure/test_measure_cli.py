import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "runners"))

import typer
from runner_models import bundle, texts

from lightformers.cli.doctor import EXTRAS, advice, doctor
from lightformers.cli.measure import measure

ISA = dict.fromkeys(
    (
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx_vnni",
        "avx512_bf16",
        "amx_bf16",
        "amx_int8",
        "i8mm",
        "asimddp",
        "bf16",
    ),
    False,
)


def _run(command, *arguments):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command)
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def two(monkeypatch):
    """Two names that load as tiny models, one smaller than the other."""
    import lightformers.bundle as room

    monkeypatch.setattr(room, "load", lambda name, **_: bundle("bert" if name == "one" else "distilbert"))


def test_measure_compares_two_models(two, tmp_path):
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(t["text"] for t in texts()))
    done = _run(measure, "one", "two", "--data", str(data), "--rounds", "3", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["examples"] == 13 and facts["rounds"] == 3
    assert [m["model"] for m in facts["models"]] == ["one", "two"]
    assert facts["speedup"]["low"] <= facts["speedup"]["ratio"] <= facts["speedup"]["high"]
    assert facts["models"][0]["deploy"].startswith("torch fp32, sorted")


def test_measure_has_texts_of_its_own_and_prints_a_table(two):
    done = _run(measure, "one", "two", "--examples", "7", "--rounds", "3", "--precision", "bf16")
    assert done.exit_code == 0, done.output
    assert "as fast as A" in done.stdout and "over 7 examples" in " ".join(done.stdout.split())


def test_measure_says_which_columns_there_are(two, tmp_path):
    data = tmp_path / "texts.csv"
    data.write_text("review,stars\ngood,5\n")
    done = _run(measure, "one", "two", "--data", str(data))
    assert "review" in str(done.exception)


def test_doctor_prints_json_with_what_is_missing():
    done = _run(doctor, "--json")
    facts = json.loads(done.stdout)
    assert facts["machine"]["cores"]["usable"] >= 1 and facts["free"]["disk_bytes"] > 0
    assert set(facts["missing"]) <= set(EXTRAS)


def test_doctor_names_the_pip_command(monkeypatch):
    import lightformers.cli.doctor as room

    monkeypatch.setattr(room, "find_spec", lambda name: None)
    done = _run(doctor)
    assert "pip install 'lightformers[openvino]'" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("isa", "words"),
    [
        ({"amx_int8": True, "amx_bf16": True, "avx2": True}, "AMX"),
        ({"avx512_vnni": True, "avx2": True}, "VNNI without AMX"),
        ({"avx2": True}, "AVX2 without VNNI"),
    ],
)
def test_advice_follows_the_instructions(isa, words):
    found = {"isa": {**ISA, **isa}, "gpu": None, "cores": {"usable": 8, "cgroup_limit": 2.0}}
    said = "\n".join(advice(found, set()))
    assert words in said and "2 of 8 cores" in said
