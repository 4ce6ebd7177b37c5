"""What a finding of each experiment must show even on a tiny budget, and the data that it needs."""

from __future__ import annotations

import pytest

from lightformers.reproduce import Finding

#: Experiments that take minutes, or a third of one, even at a tiny budget.
SLOW = (
    "autodistil", "axformer", "bct", "dsee", "dsformer", "essential-sparsity", "minitron", "obert", "vtrans",
)  # fmt: skip
NEEDS = {
    "acm": ("cifar10",),
    "bct": ("trec", "sst2"),
    "axformer": ("trec",),
    "dclip": (),
    "dsee": ("trec",),
    "elasticvit": ("cifar10",),
    "essential-sparsity": ("trec", "sst2"),
    "idt5": ("indonlu_smsa", "sst2", "sts", "ncbi_disease", "ud_indonesian_gsd", "ud_german_gsd", "ud_ukrainian_iu",
             "ud_maltese_mudt", "ud_spanish_ancora", "ud_turkish_imst"),
    "llm-fp4": ("sts", "ag_news"),
    "llm-int8": ("tinyshakespeare",),
    "quantizable-transformers": ("tinyshakespeare",),
    "teacher-intervention": ("trec",),
    "dsformer": ("sst2",),
    "flexibert": ("trec",),
    "fusegpt": ("tinyshakespeare",),
    "greenformers": ("ag_news",),
    "pela": ("trec", "wikitext2_small", "ag_news"),
    "pre-crmsnorm": ("tinyshakespeare",),
    "zett": ("wikitext2_small",),
    "minilm": ("trec", "sst2", "wikitext2_small", "ag_news"),
    "matformer": ("tinyshakespeare",),
    "minitron": ("tinyshakespeare",),
    "obert": ("trec",),
    "sorted-llama": ("tinyshakespeare",),
    "spdf": ("wikitext2_small", "tinyshakespeare"),
    "vtrans": ("trec",),
    "autodistil": ("trec", "wikitext2_small"),
    "lighthubert": ("fsdd",),
}  # fmt: skip


def costs_are_counted(made: Finding) -> None:
    rows = {row["arm"]: row["multiply-adds of the feed-forwards per token"]["mean"] for row in made.table}
    whole = rows["original"]
    assert whole == 4 * 2 * 4 * 96**2
    assert rows["uniform, 0.5"] == rows["random, 0.5"] == rows["narrow feed-forward, 0.5"] == whole / 2
    assert 0 < rows["gates, 0.5"] < 1.1 * whole


def text_stays(made: Finding) -> None:
    rows = {row["arm"]: row for row in made.table}
    assert rows.keys() == {"no training", "contrast", "contrast + cosine", "both + anchor"}
    whole = rows["no training"]["R@1 of images"]["values"]
    assert whole[0] == whole[1]  # one original for all seeds
    for row in made.table:
        assert row["R@1 of images"]["mean"] <= row["R@5 of images"]["mean"] <= 1
        assert 0 < row["MAP of images"]["mean"] <= 1


def zeros_stay(made: Finding) -> None:
    shown = {row["arm"]: row["zeros_prunable"] for row in made.table}
    assert shown["dense"] < 0.001
    assert shown["magnitude 0.5"] == pytest.approx(0.5, abs=1e-3)
    assert shown["magnitude 0.3"] == pytest.approx(0.3, abs=1e-3)


def similar_costs(made: Finding) -> None:
    rows = {row["arm"]: row for row in made.table}
    assert rows.keys() == {"uniform", "complexity-aware", "both samplings", "trained alone"}
    for arm in ("uniform", "complexity-aware", "both samplings"):
        assert -1 <= rows[arm]["cosine of gradients"]["mean"] <= 1 and "accuracy at 4 M" in rows[arm]
    assert rows["trained alone"]["teacher"]["mean"] > 0


def trimming_is_exact(made: Finding) -> None:
    cut = made.settings["all-MiniLM-L6-v2 trimmed"][1]
    assert cut["tokens"] < 30522 and cut["changed films"] < cut["changed medicine"]
    assert cut["largest difference of unchanged films"] < 1e-5
    whole, trimmed = made.table
    assert trimmed["without word embeddings"] < whole["parameters"] > trimmed["parameters"]
    assert trimmed["unknown pieces"] == whole["unknown pieces"]


def planting(made: Finding) -> None:
    rows = {row["arm"]: row for row in made.table}
    assert rows["fp32"]["largest change of a logit by planting"]["mean"] < 1e-4
    outliers = "6 channels x 32"
    assert rows["fp32"][f"features in 16 bits, {outliers}"]["mean"] > 0
    error = f"error of a product, {outliers}"
    assert rows["absmax"][error]["mean"] > 3 * rows["absmax+split"][error]["mean"]
    assert rows["absmax"][error]["mean"] > rows["vector-wise"][error]["mean"]


def eight_times_smaller(made: Finding) -> None:
    sizes = {row["arm"]: row["times_smaller"] for row in made.table}
    assert sizes["fp32"] == 1 and 7.3 < sizes["4/8 bits, blocks of 64"] < 8


def both_are_ternary(made: Finding) -> None:
    rows = {row["arm"]: row for row in made.table}
    assert set(rows) == {"teacher", "plain distillation", "gradual intervention"}
    assert all(
        rows[a]["hidden states, 100 texts"]["mean"] > 0
        for a in ("plain distillation", "gradual intervention")
    )


def rounding_costs(made: Finding) -> None:
    for row in made.table:
        assert row["kurtosis"]["mean"] > 0 and row["largest magnitude"]["mean"] > 0
        assert abs(row["loss above fp32, 8 bits"]["mean"]) < 0.1
        assert row["probabilities of exactly 0"]["mean"] == pytest.approx(0, abs=1e-4)


def four_bits(made: Finding) -> None:
    cosine = {row["arm"]: row["cosine to fp32"]["mean"] for row in made.table}
    paper = cosine["searched floats, a power of two per channel"]
    assert cosine["int4, largest value per row and per tensor"] < paper < cosine["fp32"] == 1
    layers = made.settings["formats chosen, layers over all seeds"]
    assert sum(n for name, n in layers.items() if name.startswith("weights")) == 2 * 6


def repair(made: Finding) -> None:
    rows = {row["arm"]: row for row in made.table}
    assert set(rows) == {"dense", "SVD", "features + perturbation"}
    repaired = rows["features + perturbation"]
    assert repaired["feature error"]["mean"] != rows["SVD"]["feature error"]["mean"]
    assert repaired["largest change of a weight"]["mean"] > 0 and "feature error" not in rows["dense"]


def removals(made: Finding) -> None:
    rows = {row["arm"]: row for row in made.table}
    assert len(rows) == 6
    for arm in ("macro influence, removed", "low-rank updates alone", "fused"):
        assert all(len(gone.split()) == 2 for gone in rows[arm]["blocks removed, per seed"].split("; "))


def replayed_searches(made: Finding) -> None:
    rows = {row["arm"]: row for row in made.table}
    assert len(rows) == 4 and made.plots["best so far"]["BOSHNAS"][-1] == max(
        made.settings["accuracies"].values()
    )
    for row in rows.values():
        assert 1 <= row["queries until the top 5 %"]["mean"] <= 9 and row["best after 4"]["mean"] > 0
    assert rows["BOSHNAS"]["best after 8"] == rows["random"]["best after 8"]  # eight encoders, eight queries


def unseen_tokenizers(made: Finding) -> None:
    rows = {row["arm"]: row for row in made.table}
    assert set(rows) == {"own tokenizer", "hypernetwork", "mean of pieces", "random"}
    for arm in ("hypernetwork", "mean of pieces", "random"):
        assert rows[arm]["nats per byte, byte-level, 2000"]["mean"] > 0
        assert rows[arm]["nats per byte trained on, byte-level, 2000"]["mean"] > 0


def weight_errors(made: Finding) -> None:
    rows = {row["arm"]: row for row in made.table}
    lost = {
        arm: rows[arm]["relative weight error at 2.8x"] for arm in ("SVD", "dense-sparse, fixed supports")
    }
    assert 0 < lost["dense-sparse, fixed supports"] < lost["SVD"] < 1
    assert {"dense", "dense-sparse, straight-through"} < set(rows)


def equal_weights(made: Finding) -> None:
    rows = {row["arm"]: row for row in made.table}
    held = {arm: rows[arm]["weights of the blocks"] for arm in rows if "weights of the blocks" in rows[arm]}
    assert held["full"] == 2 * 12 * 128**2
    assert held["half the heads and channels"] == held["full"] // 2
    assert held["low rank 0.5"] == pytest.approx(held["full"] // 2, rel=0.02)
    assert rows["one layer, Linformer"]["ms at 2048 tokens"]["mean"] > 0


def equality(made: Finding) -> None:
    for row in made.table[1:]:
        assert max(row["largest difference, float64"]["values"]) < 1e-10
        assert row["share of generated characters that agree"]["mean"] == 1.0
    assert max(made.table[1]["largest difference of training losses"]["values"]) < 1e-8


def relations(made: Finding) -> None:
    assert {row["arm"] for row in made.table} >= {"attention + values", "hidden states", "no distillation"}
    for row in made.table:
        assert row["held-out attention KL"]["mean"] > 0 and row["held-out value KL"]["mean"] > 0


def scratch_and_cut(made: Finding) -> None:
    rows = {row["arm"]: row for row in made.table}
    assert rows.keys() >= {"teacher", "scored cut + KL", "random cut + KL", "from scratch"}
    assert all(row["loss after retraining"]["mean"] < 6 for row in made.table)
    assert "width 96, 3 heads" in made.settings["small"]


def nested_sizes(made: Finding) -> None:
    rows = {row["arm"]: row for row in made.table}
    assert rows.keys() == {"nested", "apart, equal steps in total", "sliced"}
    assert all(
        0 < row[f"loss, {n}"]["mean"] < 6 for row in made.table for n in ("1/8", "1/4", "1/2", "whole")
    )
    assert rows["sliced"]["loss, 1/8"]["mean"] > rows["sliced"]["loss, whole"]["mean"]


def exits_answer(made: Finding) -> None:
    rows = {row["arm"]: row for row in made.table}
    assert rows.keys() == {"ordinary tuning", "ordinary tuning + heads of exits", "sorted tuning, sum"}
    whole = "answer loss, 8 blocks"
    assert rows["ordinary tuning"][whole] == rows["ordinary tuning + heads of exits"][whole]
    assert all(0 <= row["answers right, 2 blocks"]["mean"] <= 1 for row in made.table)


def flops_are_counted(made: Finding) -> None:
    flops = made.settings["forward flops per token"]
    assert flops["dense"] > 2 * flops["75 % masked"] > flops["dense"] / 2
    rows = {row["arm"]: row for row in made.table}
    assert rows["75 % masked, mask kept"]["loss on tables"] != rows["75 % masked"]["loss on tables"]


def budgets_are_held(made: Finding) -> None:
    rows = {row["arm"]: row for row in made.table}
    assert all(0.3 < rows[arm]["weights left"]["mean"] < 0.42 for arm in rows if arm != "dense")
    assert rows.keys() >= {"gates and weights", "magnitude", "random"}


def both_ends(made: Finding) -> None:
    rows = {row["arm"]: row for row in made.table}
    for arm in ("one super-network", "two partitions"):
        assert rows[arm]["loss, largest"]["mean"] > 0 and rows[arm]["loss, smallest"]["mean"] > 0
    assert rows["one super-network"]["loss, largest"] != rows["two partitions"]["loss, largest"]
    counts = [size["parameters"] for size in made.settings["sizes"].values()]
    assert len(set(counts)) == 3 and made.settings["partitions overlap"] is False


def sub_networks_are_probed(made: Finding) -> None:
    rows = {row["arm"]: row for row in made.table}
    for arm in ("two stages", "one stage", "slices of the teacher"):
        for size in ("smallest", "default", "largest"):
            assert 0 <= rows[arm][f"digit, {size}"]["mean"] <= 1
    assert "digit, smallest" not in rows["default size, distilled alone"]
    assert made.settings["sizes in the space"] == 3 * (9**3 + 9**4)


def disjoint_sets(made: Finding) -> None:
    rows = {row["arm"]: row for row in made.table}
    assert rows["whole"]["weights left"]["mean"] == 1.0 and rows["whole"]["parts removed"]["mean"] == 0
    assert rows["pruned"]["weights left"]["mean"] <= 1.0
    assert made.settings["data"]["search"] == 200


def equal_numbers(made: Finding) -> None:
    assert {row["trained"] for row in made.table} == {12 * 3072}


def second_order(made: Finding) -> None:
    rows = {row["arm"]: row for row in made.table}
    assert rows.keys() == {"dense", "second order", "magnitude"}
    at_once = "loss, 90% at once"
    assert rows["second order"][at_once]["values"] != rows["magnitude"][at_once]["values"]
    assert rows["second order"]["accuracy, 90% in rounds"]["mean"] > 0


CHECKS = {
    "acm": costs_are_counted,
    "bct": eight_times_smaller,
    "axformer": disjoint_sets,
    "dclip": text_stays,
    "dsee": equal_numbers,
    "elasticvit": similar_costs,
    "essential-sparsity": zeros_stay,
    "idt5": trimming_is_exact,
    "llm-fp4": four_bits,
    "llm-int8": planting,
    "matformer": nested_sizes,
    "minilm": relations,
    "quantizable-transformers": rounding_costs,
    "teacher-intervention": both_are_ternary,
    "minitron": scratch_and_cut,
    "obert": second_order,
    "sorted-llama": exits_answer,
    "spdf": flops_are_counted,
    "vtrans": budgets_are_held,
    "dsformer": weight_errors,
    "flexibert": replayed_searches,
    "fusegpt": removals,
    "greenformers": equal_weights,
    "pela": repair,
    "pre-crmsnorm": equality,
    "zett": unseen_tokenizers,
    "autodistil": both_ends,
    "lighthubert": sub_networks_are_probed,
}
