"""Rows: what is computed of an arm, and which arms get a verdict."""

import pytest
from scipy import stats

from lmxexp.compare.comparison import compare_runs
from lmxexp.compare.statistics import seeds_needed
from tests.compare.made_runs import memory_run

MHA, GQA = (3.0, 3.05, 2.95), (2.98, 3.028, 2.93)
TEXTS = {
    name: {"data": {"fingerprint": name, "eval_bytes": n, "eval_targets": n}} for name, n in (("a", 10), ("b", 20))
}


def runs_of(kind, losses, text="a", first=0, **others):
    record = {**TEXTS[text], **others}
    choices = {"attention": kind, "data": text}
    return [memory_run(choices, seed=first + s, loss=v, record=record) for s, v in enumerate(losses)]


def test_costs_are_means_over_the_runs():
    runs = runs_of("mha", MHA)
    for i, run in enumerate(runs):
        run.record.update({"params": 100 + i, "flops_per_token": 600 + 6 * i})
        run.summary.update({"tokens": 1000 * (i + 1), "perf/tokens_per_s": 10.0 * (i + 1), "mem/peak_gb": 0.5 + i / 10})
    costs = compare_runs(runs).rows[0].costs
    assert costs == pytest.approx({
        "params": 101, "flops_per_token": 606, "tokens": 2000, "tokens_per_s": 20, "peak_gb": 0.6, "memory": 0.6,
        "steps": 200, "time": 100, "flops": (600 * 1000 + 606 * 2000 + 612 * 3000) / 3,
    })  # fmt: skip


def test_costs_that_are_not_known():
    runs = runs_of("mha", MHA)
    for run in runs:
        run.record.pop("params")
        run.summary.pop("mem/peak_gb")
    costs = compare_runs(runs).rows[0].costs
    assert (costs["params"], costs["peak_gb"], costs["tokens"]) == (None, None, 409_600)


def test_on_several_texts_arms_are_compared_where_they_saw_the_same():
    """Two texts, two kinds: an arm of the other text cannot be compared with the baseline, nor count in Holm's."""
    runs = [r for text in "ab" for kind, v in (("mha", MHA), ("gqa", GQA)) for r in runs_of(kind, v, text)]
    rows = {row.arm.label: row for row in compare_runs(runs).rows[1:]}
    same = rows["attention=gqa data=a"]
    assert (same.verdict.word, same.p_holm) == ("better", pytest.approx(stats.ttest_rel(GQA, MHA).pvalue))
    for label in ("attention=mha data=b", "attention=gqa data=b"):
        assert rows[label].verdict.text == "not comparable: the runs are not evaluated on the same text"
        assert rows[label].p_holm is None


def test_over_several_texts_a_seed_counts_once():
    """Pairs are on the same text; each seed's differences are averaged."""
    runs = [r for text in "ab" for kind, v in (("mha", MHA), ("gqa", GQA)) for r in runs_of(kind, v, text)]
    row = compare_runs(runs, by=["attention"]).rows[1]
    assert (row.difference.how, row.difference.n, row.verdict.word) == ("paired", (3, 3), "better")


def test_unpaired_runs_on_other_texts_are_not_comparable():
    rows = compare_runs([*runs_of("mha", MHA), *runs_of("gqa", GQA, "b", first=5)], by=["attention"]).rows
    assert rows[1].verdict.word == "not comparable"
    speed = compare_runs([*runs_of("mha", MHA), *runs_of("gqa", GQA, "b", first=5)], metric="perf/tokens_per_s")
    assert speed.rows[1].verdict.word != "not comparable"


def test_a_row_of_the_baseline_has_no_comparison():
    base = compare_runs([*runs_of("mha", MHA), *runs_of("gqa", GQA)]).rows[0]
    assert (base.compared, base.verdict, base.mismatch, base.p, base.difference) == (None, None, None, None, None)
    assert (base.seeds_needed, base.seeds_for_effect) == (None, None)


def test_an_arm_that_has_no_result_has_no_mismatch():
    lost = [memory_run({"attention": "gqa", "data": "a"}, seed=1, status="waiting")]
    row = compare_runs([*runs_of("mha", MHA), *lost]).rows[1]
    assert (row.verdict.text, row.mismatch, row.sample) == ("no result: not started", None, None)


def test_numbers_of_seeds_hold_after_holms_correction():
    """Of one arm alone at 5 %, of three at a third of it."""
    alone = [*runs_of("mha", MHA), *runs_of("gqa", (3.0, 3.04, 2.9))]
    one = compare_runs(alone, effect=0.02).rows[1]
    of_three = compare_runs([*alone, *runs_of("mqa", GQA), *runs_of("mla", GQA)], effect=0.02).rows[1]
    for row, level in ((one, 0.05), (of_three, 0.05 / 3)):
        assert row.seeds_needed == seeds_needed(row.difference, None, level)
        assert row.seeds_for_effect == seeds_needed(row.difference, 0.02, level)
    assert of_three.seeds_needed > one.seeds_needed
