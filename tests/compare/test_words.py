"""What is said of arms, for each of the things that can be said."""

import pytest

from lmxexp.compare.comparison import compare_runs
from lmxexp.compare.words import sentences
from tests.compare.made_runs import memory_run

MHA, GQA = (3.0, 3.05, 2.95), (2.98, 3.028, 2.93)


def said(*arms, **options):
    """Sentences of the arms, each ``(kind, losses, changes of its runs)``."""
    runs = [
        memory_run({"attention": kind}, seed=s, loss=loss, **(changes[0] if changes else {}))
        for kind, losses, *changes in arms
        for s, loss in enumerate(losses)
    ]
    comparison = compare_runs(runs, **options)
    return comparison, sentences(comparison)


def test_better():
    comparison, (first, method) = said(("mha", MHA), ("gqa", GQA))
    d = comparison.rows[1].difference
    assert first == (
        f"attention=gqa is better than attention=mha: eval/loss differs by -0.0207 [{d.low:+.4f}, {d.high:+.4f}] "
        f"(paired t, 3 pairs, p = {d.p:.2g})."
    )
    assert method == (
        "Differences are arm minus baseline, paired by seed and data; intervals are 95 % t intervals of each alone."
    )


def test_worse_and_more_is_better():
    assert "attention=mha is worse than attention=gqa" in said(("mha", MHA), ("gqa", GQA), baseline="gqa")[1][0]
    assert "attention=gqa is worse than" in said(("mha", MHA), ("gqa", GQA), higher=True)[1][0]


def test_not_distinguishable_says_how_many_seeds():
    comparison, (first, _) = said(("mha", MHA), ("gqa", (3.02, 3.0, 2.96)))
    n = comparison.rows[1].seeds_needed
    assert n > 3
    assert f"About {n} seeds an arm would show a difference of this size with a power of 80 %." in first
    asked, (first, _) = said(("mha", MHA), ("gqa", (3.02, 3.0, 2.96)), effect=0.02)
    wanted = asked.rows[1].seeds_for_effect
    assert f"About {wanted} seeds an arm would show a difference of 0.02 with a power of 80 %." in first
    tiny = said(("mha", MHA), ("gqa", (3.02, 3.0, 2.96)), effect=1e-9)[1][0]
    assert "More than a million seeds an arm would show a difference of 1e-09" in tiny
    same = said(("mha", (3.0, 3.1, 3.2)), ("gqa", (3.1, 3.0, 3.2)))[1][0]
    assert "seeds an arm" not in same  # no difference at all
    little = said(("mha", (3.0, 3.1, 3.2)), ("gqa", (3.1, 3.0, 3.2000001)))[1][0]
    assert "No number of seeds up to a million would show a difference of this size." in little


def test_one_seed():
    assert said(("mha", [3.0]), ("gqa", [2.0]))[1] == [
        "attention=gqa is not distinguishable from attention=mha (one seed): eval/loss differs by -1.0000. "
        "More seeds are needed: two at least."
    ]


def test_the_only_arm():
    assert said(("mha", MHA))[1] == ["llama-mha is the only arm: there is nothing to compare it with."]


def test_many_arms_and_both_tests():
    runs = [
        memory_run({"attention": k}, seed=s, loss=v) for k, vs in (("mha", MHA), ("gqa", GQA)) for s, v in enumerate(vs)
    ]
    runs += [memory_run({"attention": "mqa"}, seed=s + 10, loss=v) for s, v in enumerate(MHA)]
    *_, unpaired, method = sentences(compare_runs(runs))
    assert "(Welch, 3 and 3 runs, unpaired, p = 1.00)" in unpaired
    assert method.startswith(
        "Differences are arm minus baseline, paired by seed and data and Welch's t where no two seeds are shared;"
    )
    assert method.endswith("p values are Holm's over 2 arms; numbers of seeds hold for the strictest of its steps.")


def test_left_out_and_lost():
    runs = [memory_run({"attention": "mha"}, seed=s, loss=v) for s, v in enumerate(MHA)]
    runs += [memory_run({"attention": "gqa"}, seed=s, loss=v) for s, v in enumerate(GQA[:2])]
    runs += [memory_run({"attention": "gqa"}, seed=2, status="diverged")]
    first = sentences(compare_runs(runs))[0]
    assert "1 run without a partner (seed 2) left out of the difference." in first
    assert first.endswith("1 of 3 diverged: what is said rests on the others.")


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ((1000, 900), "It has -10 % params, which does not favour the one that is ahead."),
        ((1000, 1001), "It has +0.1 % params, which could explain 0.0002 of it: 0.076 of the loss per e-fold"),
        ((1000, 1000), None),
    ],
)
def test_mismatch(params, text):
    arms = [(k, v, {"record": {"params": n}}) for k, v, n in zip(("mha", "gqa"), (MHA, GQA), params, strict=True)]
    first = said(*arms, budget="params")[1][0]
    assert text in first if text else "params" not in first


def test_a_mismatch_of_unknown_effect():
    arms = [(k, v, {"summary": {"mem/peak_gb": n}}) for k, v, n in (("mha", MHA, 1.0), ("gqa", GQA, 1.2))]
    first = said(*arms, budget="memory")[1][0]
    assert first.startswith(
        "attention=gqa is not distinguishable from attention=mha (what the mismatch of +20 % memory"
    )
    assert "It has +20 % memory; what that explains is not known." in first


def test_what_cannot_be_compared():
    other = {"record": {"data": {"fingerprint": "other", "eval_bytes": 5}}}
    first = said(("mha", MHA), ("gqa", GQA, other))[1][0]
    assert first.startswith(
        "attention=gqa cannot be compared with attention=mha (the runs are not evaluated on the same"
    )
    lost = said(("mha", MHA), ("gqa", GQA, {"status": "pruned"}))[1][0]
    assert lost == "attention=gqa has no result (stopped early)."
