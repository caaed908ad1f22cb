"""The whole of a comparison: numbers, corrections, the baseline, failures, options."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lmxexp.compare.comparison import compare, compare_runs
from lmxexp.interfaces import ConfigError
from tests.compare.arms_in_memory import CONFIGS, row_of, runs_of
from tests.compare.made_runs import make_run, make_sweep, memory_run

MHA, GQA = [3.00, 3.05, 2.95], [2.98, 3.02, 2.935]


def test_a_paired_comparison_is_scipys():
    row = compare_runs(runs_of({"mha": MHA, "gqa": GQA})).rows[1]
    reference = stats.ttest_rel(GQA, MHA)
    assert (row.difference.how, row.difference.n) == ("paired", (3, 3))
    assert row.p == row.p_holm == pytest.approx(reference.pvalue)
    assert row.verdict.word == "better"
    assert (row.sample.n, row.sample.mean) == (3, pytest.approx(np.mean(GQA)))


def test_pairs_go_by_seed_and_not_by_order():
    runs = runs_of({"mha": MHA, "gqa": GQA})
    row = compare_runs([*runs[:3], *runs[:2:-1]]).rows[1]
    assert row.p == pytest.approx(stats.ttest_rel(GQA, MHA).pvalue)


@pytest.mark.parametrize("what", ["data seed", "fingerprint", "seed"])
def test_what_saw_other_data_is_no_pair(what):
    runs = runs_of({"mha": MHA})
    for i, loss in enumerate(GQA):
        if what == "data seed":
            other = {"record": {"seeds": {"seed": i, "data": i + 10}}}
        elif what == "fingerprint":
            other = {"record": {"data": {"fingerprint": "other", "eval_bytes": 100_000, "eval_targets": 100_000}}}
        else:
            other = {"record": {"seeds": {"seed": i + 5, "data": i}}}
        runs.append(memory_run(config=CONFIGS["gqa", i], loss=loss, **other))
    row = compare_runs(runs).rows[1]
    assert row.difference.how == "Welch"
    assert row.p == pytest.approx(stats.ttest_ind(GQA, MHA, equal_var=False).pvalue)


def test_two_shared_seeds_are_pairs_and_the_others_are_left_out():
    runs = [*runs_of({"mha": MHA}), *runs_of({"gqa": [*GQA, 3.3]}, first_seed=1)]
    row = compare_runs(runs).rows[1]
    assert (row.difference.how, row.difference.n) == ("paired", (2, 2))
    assert row.p == pytest.approx(stats.ttest_rel(GQA[:2], MHA[1:]).pvalue)
    assert sorted((run.choices["attention"], run.seed) for run in row.compared.left_out) == [
        ("gqa", 3), ("gqa", 4), ("mha", 0),
    ]  # fmt: skip


def test_one_shared_seed_is_no_pair():
    runs = [*runs_of({"mha": MHA}), *runs_of({"gqa": GQA}, first_seed=2)]
    row = compare_runs(runs).rows[1]
    assert (row.difference.how, row.difference.n) == ("Welch", (3, 3))


def test_one_seed_is_not_distinguishable():
    row = compare_runs(runs_of({"mha": [3.0], "gqa": [2.0]})).rows[1]
    assert (row.verdict.word, row.verdict.reason) == ("not distinguishable", "one seed")
    assert (row.difference, row.p_holm, row.compared.mean) == (None, None, -1.0)
    one_to_three = compare_runs(runs_of({"mha": MHA, "gqa": [2.0]})).rows[1]
    assert (one_to_three.verdict.word, one_to_three.sample.low) == ("not distinguishable", None)


def test_seeds_that_change_nothing_are_one_observation():
    comparison = compare_runs(runs_of({"mha": [3.0, 3.0, 3.0], "gqa": [2.9, 2.9, 2.9]}))
    verdict = comparison.rows[1].verdict
    assert (verdict.word, verdict.reason) == ("not distinguishable", "the seeds change nothing: one observation each")
    assert any("mha" in w and "same for all 3 seeds" in w for w in comparison.warnings)
    same = compare_runs(runs_of({"mha": MHA, "gqa": MHA})).rows[1]
    assert (same.verdict.word, same.p) == ("not distinguishable", 1.0)


def test_holm_goes_over_the_arms_that_were_tested():
    losses = {"mha": MHA, "gqa": GQA, "mqa": [v - 0.03 for v in GQA], "sliding": [3.0]}
    rows = compare_runs(runs_of(losses)).rows[1:]
    p = [row.p for row in rows[:2]]
    small, large = sorted(p)
    expected = {small: min(1, 2 * small), large: max(min(1, 2 * small), large)}
    assert [row.p_holm for row in rows] == [expected[p[0]], expected[p[1]], None]


def test_what_is_significant_alone_may_not_be_among_many():
    losses = {
        "mha": [3.0, 3.02, 3.05],
        "gqa": [2.99, 3.006, 3.03],
        "mqa": [3.01, 3.01, 3.05],
        "sliding": [3.0, 3.03, 3.05],
    }
    row = compare_runs(runs_of(losses)).rows[1]
    assert row.p < 0.05 < row.p_holm
    assert row.verdict.word == "not distinguishable"
    assert "alone" in row.verdict.reason


def test_higher_is_better_of_accuracy_and_of_what_the_user_says():
    def metric(name, sign):
        runs = []
        for kind, values in (("mha", MHA), ("gqa", GQA)):
            for i, v in enumerate(values):
                runs.append(memory_run(config=CONFIGS[kind, i], summary={name: sign * v}))
        return runs

    assert compare_runs(metric("eval/accuracy", 1), metric="eval/accuracy").rows[1].verdict.word == "worse"
    assert compare_runs(metric("perf/tokens_per_s", -1), metric="perf/tokens_per_s").rows[1].verdict.word == "better"
    assert compare_runs(metric("eval/own", 1), metric="eval/own").rows[1].verdict.word == "better"
    assert compare_runs(metric("eval/own", 1), metric="eval/own", higher=True).rows[1].verdict.word == "worse"


def test_how_many_seeds_an_effect_would_need():
    comparison = compare_runs(runs_of({"mha": MHA, "gqa": [v + 0.001 * i for i, v in enumerate(MHA)]}), effect=0.01)
    row = comparison.rows[1]
    assert row.seeds_for_effect == 2 or row.seeds_for_effect < row.seeds_needed
    assert row.seeds_needed > 3


@pytest.mark.parametrize("asked", ["attention=gqa", "gqa"])
def test_the_baseline_comes_first(asked):
    comparison = compare_runs(runs_of({"mha": MHA, "gqa": GQA, "mqa": MHA}), baseline=asked)
    assert [arm.label for arm in comparison.arms] == ["attention=gqa", "attention=mha", "attention=mqa"]
    assert comparison.baseline.label == "attention=gqa"
    assert comparison.rows[0].verdict is None
    assert comparison.rows[1].difference.mean == pytest.approx(np.mean(MHA) - np.mean(GQA))


def test_a_baseline_that_is_none():
    with pytest.raises(ConfigError, match=r"--baseline 'mla' is no arm; the arms are: attention=mha; attention=gqa"):
        compare_runs(runs_of({"mha": MHA, "gqa": GQA}), baseline="mla")


def test_a_first_arm_without_results_is_no_baseline():
    runs = runs_of({"mha": [math.inf] * 2}, status="diverged") + runs_of({"gqa": GQA, "mqa": MHA})
    comparison = compare_runs(runs)
    assert comparison.baseline.label == "attention=gqa"
    assert any("attention=mha has no result" in w for w in comparison.warnings)
    assert row_of(comparison, "attention=mha").verdict.text == "no result (2 of 2 diverged)"


def test_what_diverged_is_in_the_verdict():
    runs = runs_of({"mha": [*MHA, 3.0], "gqa": GQA})
    runs += [memory_run(config=CONFIGS["gqa", 3], status="diverged", error="loss of step 7 is nan")]
    comparison = compare_runs(runs)
    row = comparison.rows[1]
    assert row.verdict.text == "better (1 of 4 diverged)"
    assert [(run.status, run.error) for run in comparison.failed] == [("diverged", "loss of step 7 is nan")]
    swapped = compare_runs(runs, baseline="gqa").rows[1]
    assert swapped.verdict.failures == "baseline: 1 of 4 diverged"


def test_a_loss_that_is_no_number_has_diverged():
    comparison = compare_runs(runs_of({"mha": MHA, "gqa": [*GQA[:2], math.nan]}))
    assert (comparison.rows[1].sample.n, comparison.rows[1].verdict.failures) == (2, "1 of 3 diverged")
    assert comparison.failed[0].error == "eval/loss is nan"


def test_a_metric_that_some_runs_lack():
    runs = runs_of({"mha": MHA, "gqa": GQA})
    runs[5].summary.pop("eval/loss")
    comparison = compare_runs(runs)
    assert comparison.warnings[0] == f"1 of 6 runs have no eval/loss and do not count: {runs[5].name}"
    assert comparison.rows[1].sample.n == 2
    with pytest.raises(ConfigError, match=r"--metric eval/los: no run has it; did you mean eval/loss\?"):
        compare_runs(runs, metric="eval/los")


def test_pruned_points_do_not_count_and_are_no_failures():
    runs = [*runs_of({"mha": MHA, "gqa": GQA}), *runs_of({"mqa": [9.0]}, status="pruned")]
    comparison = compare_runs(runs)
    verdict = row_of(comparison, "attention=mqa").verdict
    assert (verdict.word, verdict.reason, verdict.failures) == ("no result", "stopped early", "")
    assert [run.status for run in comparison.failed] == ["pruned"]


def test_nothing_that_ended_well():
    with pytest.raises(ConfigError, match=r"made/_1 is the only run, and there is nothing .*: diverged: nan at step 3"):
        compare_runs(runs_of({"mha": [1.0]}, status="diverged", error="nan at step 3"))
    with pytest.raises(
        ConfigError, match=r"none of 25 runs has ended well.*yet:\n  \w+: has not started\n(.*\n)+  and 5 more"
    ):
        compare_runs(runs_of({"mha": [1.0] * 5, "gqa": [1.0] * 10, "mqa": [1.0] * 10}, status="waiting"))


def tokenized(sizes=(1000, 1000)):
    return [
        memory_run(
            {"tokenizer": name}, seed=seed, loss=loss + seed / 100,
            summary={"eval/bpb": 2.0 + seed / 100},
            record={"data": {"fingerprint": name, "eval_bytes": size, "eval_targets": size // int(loss)}},
        )
        for name, loss, size in (("byte", 1.5, sizes[0]), ("bpe", 4.0, sizes[1]))
        for seed in range(2)
    ]  # fmt: skip


def test_between_tokenizers_bits_per_byte_are_compared():
    comparison = compare_runs(tokenized())
    assert (comparison.metric, comparison.rows[1].verdict.word) == ("eval/bpb", "not distinguishable")
    assert any("eval/bpb is compared" in w for w in comparison.warnings)


def test_a_loss_per_token_asked_for_between_tokenizers_gives_no_verdict():
    comparison = compare_runs(tokenized(), metric="eval/loss")
    assert (comparison.metric, comparison.rows[1].verdict.word) == ("eval/loss", "not comparable")
    assert any("--metric eval/bpb" in w for w in comparison.warnings)


def test_losses_within_documents_and_across_them_give_no_verdict():
    masked = {"data": {"fingerprint": "other", "document_mask": True}}
    comparison = compare_runs(runs_of({"mha": MHA}) + runs_of({"gqa": GQA}, record=masked))
    assert "data.document_mask=true" in comparison.rows[1].verdict.text
    assert comparison.rows[1].verdict.word == "not comparable"
    assert any("data.document_mask=true" in w for w in comparison.warnings)


def test_losses_on_different_texts_give_no_verdict():
    runs = runs_of({"mha": MHA}) + runs_of({"gqa": GQA}, record={"data": {"fingerprint": "other", "eval_bytes": 5}})
    comparison = compare_runs(runs)
    assert comparison.rows[1].verdict.text == "not comparable: the runs are not evaluated on the same text"


def test_precision_code_and_machine_are_told():
    runs = runs_of({"mha": MHA}) + runs_of(
        {"gqa": GQA}, record={"precision": "bf16", "git": {"commit": "b" * 40, "dirty": True}, "device": {"name": "B"}}
    )
    runs[0].record["git"] = {"commit": "a" * 40, "dirty": False}
    told = "\n".join(compare_runs(runs).warnings)
    assert "precision differs: fp32 (3 runs), bf16 (3 runs)" in told
    assert f"the code (git commit) differs: {'a' * 10} (1 run), {'b' * 10} with changes (3 runs)" in told
    assert "the device differs: a CPU (3 runs), B (3 runs)" in told


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"budget": "parameters"}, "--budget parameters is none of params, flops"),
        ({"sensitivity": -1.0}, "--sensitivity -1 must be 0 or more"),
        ({"sensitivity": math.nan}, "--sensitivity nan must be"),
        ({"sensitivity": math.inf}, "--sensitivity inf must be"),
        ({"effect": math.inf}, "--effect inf must be"),
        ({"metric": ""}, "--metric : no run has it"),
        ({"effect": 0.0}, "--effect 0 must be a positive"),
        ({"by": ["atention"]}, r"--by atention: .*did you mean attention\?"),
    ],
)
def test_options_that_cannot_work(option, message):
    with pytest.raises(ConfigError, match=message):
        compare_runs(runs_of({"mha": MHA, "gqa": GQA}), **option)


def test_a_seed_run_twice_counts_once(tmp_path: Path):
    make_run(tmp_path / "old", seed=1, loss=9.0, record={"started": "2026-01-01T00:00:00"})
    make_run(tmp_path / "new", seed=1, loss=3.0, record={"started": "2026-02-01T00:00:00"})
    make_run(tmp_path / "b", seed=2, loss=3.1)
    comparison = compare([tmp_path])
    assert (comparison.rows[0].sample.n, comparison.rows[0].sample.mean) == (2, pytest.approx(3.05))
    assert any("1 older run of seed 1" in w for w in comparison.warnings)


def test_points_of_an_earlier_command_that_never_started_are_missing_in_no_arm(tmp_path):
    """Of another length, say: their arms would be told as incomplete, and by the settings that they have in common."""
    points = [{"choices": {"attention": a}, "seed": s} for a in ("mha", "gqa") for s in (1, 2)]
    sweep = make_sweep(tmp_path / "s", [*({**p, "status": "waiting"} for p in points[1:]), *points])
    content = json.loads((sweep / "sweep.json").read_text())
    before = compare([sweep])
    assert len(before.failed) == 3
    assert "earlier command" not in str(before.warnings)
    (sweep / "sweep.json").write_text(json.dumps({**content, "asked": [2, 3, 4, 5, 6]}))
    after = compare([sweep])
    assert [run.path.name for run in after.failed] == ["2_attention=gqa,seed=2"]
    assert "s: 2 points of an earlier command, not started, left out: that command again runs them" in after.warnings
