import pytest

from lmxexp.compare.comparison import compare, compare_runs
from tests.compare.made_runs import make_sweep, memory_run

MHA, GQA = (3.0, 3.05, 2.95), (2.98, 3.028, 2.93)


def told(params, *, of=("mha", "gqa"), tokens=(409_600, 409_600), **options):
    runs = [
        memory_run({"attention": kind}, seed=s, loss=loss, record={"params": n}, summary={"tokens": t})
        for kind, losses, n, t in zip(of, (MHA, GQA), params, tokens, strict=True)
        for s, loss in enumerate(losses)
    ]
    comparison = compare_runs(runs, **options)
    return comparison, [w for w in comparison.warnings if "not judged" in w]


def test_a_winner_with_more_parameters_is_told():
    comparison, (text,) = told((1000, 1100))
    assert (comparison.budget, comparison.rows[1].verdict.word) == ("tokens", "better")
    assert text == (
        "what is ahead has more of what was not judged: params (attention=gqa: +10 %); --budget judges it, "
        "match=… equals it"
    )


@pytest.mark.parametrize(
    ("params", "options"),
    [
        ((1000, 1009), {}),  # within the tolerance
        ((1100, 1000), {}),  # it won with less
        ((1000, 1100), {"budget": "params", "sensitivity": 0.0}),  # it was judged
        ((1000, 1100), {"metric": "perf/tokens_per_s"}),  # a cost
    ],
)
def test_nothing_to_tell(params, options):
    comparison, said = told(params, **options)
    assert comparison.rows[1].verdict.word in ("better", "not distinguishable")
    assert not any("params" in text for text in said)


def test_a_baseline_that_wins_with_more_is_told_too():
    _, (text,) = told((1000, 1100), baseline="gqa")
    assert "params (attention=mha: -9.1 %)" in text
    assert told((1100, 1000), baseline="gqa")[1] == []


def test_tokens_and_flops_are_told_where_parameters_were_judged():
    _, (text,) = told((1000, 1000), tokens=(400_000, 500_000), budget="params")
    assert "flops (attention=gqa: +25 %), tokens (attention=gqa: +25 %)" in text


def test_what_is_not_distinguishable_needs_no_excuse():
    comparison, said = told((1000, 2000), of=("mha", "mha"))
    assert len(comparison.rows) == 1
    assert said == []
    runs = [
        memory_run({"attention": k}, seed=s, loss=3 + ((s * i) % 3) / 10, record={"params": 1000 * i})
        for i, k in ((1, "mha"), (2, "gqa"))
        for s in range(3)
    ]
    comparison = compare_runs(runs)
    assert comparison.rows[1].verdict.word == "not distinguishable"
    assert not any("not judged" in w for w in comparison.warnings)


def test_arms_that_compute_the_same_are_told():
    runs = [memory_run({"attention": k}, seed=s, loss=3 + s / 10) for k in ("mha", "sliding") for s in (1, 2)]
    same = "attention=sliding and attention=mha have exactly the same value at every seed: they compute the same"
    assert any(w.startswith(same) for w in compare_runs(runs).warnings)
    runs[0].summary["eval/loss"] += 1e-6
    assert not any("compute the same" in w for w in compare_runs(runs).warnings)


def test_sweeps_that_are_matched_otherwise_are_told(tmp_path):
    points = [{"choices": {"attention": k}, "seed": s, "loss": 3 + s / 10} for k in ("mha", "gqa") for s in (1, 2)]
    for kind in ("params", "flops"):
        make_sweep(tmp_path / kind, points, match={"kind": kind})
    comparison = compare([tmp_path])
    assert comparison.budget == "tokens"
    assert (
        "the sweeps are matched in flops and params: tokens are judged; --budget judges another" in comparison.warnings
    )
    assert compare([tmp_path], budget="params").budget == "params"
    assert not any("matched in" in w for w in compare([tmp_path], budget="params").warnings)
