"""Laws of runs: which runs make one, and what is said of it."""

import numpy as np
import pytest

from lmxexp.compare.__main__ import main
from lmxexp.compare.read import find_runs
from lmxexp.compare.scaling import fit
from lmxexp.compare.scaling_runs import best_sizes, fit_runs, formula, lines
from lmxexp.interfaces import ConfigError
from tests.compare.made_runs import make_sweep, memory_run
from tests.compare.test_scaling import TRUE, law

SIZES = {"tiny": 1e6, "10m": 1e7, "50m": 5e7, "124m": 1.2e8}
STEPS = (500, 1000, 2000, 4000)
NOISE = np.random.default_rng(0).normal(0, 1e-3, (4, 4, 2))


def point(size, steps, seed=1, kind="gqa", shift=0.0, settings=None, **others):
    i, j = list(SIZES).index(size), STEPS.index(steps)
    tokens = steps * 2e5
    loss = float(law(SIZES[size], tokens)) * (1 + NOISE[i, j, seed - 1]) + shift
    return {
        "choices": {"size": size, "attention": kind}, "settings": {"train.steps": steps, **(settings or {})},
        "seed": seed, "loss": loss, "record": {"params": int(SIZES[size])}, "summary": {"tokens": tokens}, **others,
    }  # fmt: skip


def points(**others):
    return [point(size, steps, seed, **others) for size in SIZES for steps in STEPS for seed in (1, 2)]


def runs_of(made):
    return [memory_run(**{k: v for k, v in p.items() if k != "early"}) for p in made]


def test_a_law_of_each_design():
    both = [*points(), *points(kind="mla", shift=0.1)]
    fits = fit_runs(runs_of(both), bootstrap=50)
    assert list(fits.laws) == ["attention=gqa", "attention=mla"]
    assert (fits.notes, fits.refused) == ([], {})
    for label, shift in (("attention=gqa", 0.0), ("attention=mla", 0.1)):
        found = fits.laws[label]
        assert len(found.loss) == 32
        assert pytest.approx(TRUE["E"] + shift, rel=0.05) == found.E
    rows = np.array([(SIZES[p["choices"]["size"]], p["summary"]["tokens"], p["loss"]) for p in points()])
    assert fits.laws["attention=gqa"].intervals == fit(*rows.T, bootstrap=50).intervals


def test_one_design_is_all_runs():
    assert list(fit_runs(runs_of(points()), bootstrap=20).laws) == ["all runs"]
    assert list(fit_runs(runs_of(points()), by=["optim"], bootstrap=20).laws) == ["all runs"]
    quiet = [p | {"choices": {**p["choices"], "logger": "jsonl", "debug": "on"}} for p in points()[:5]]
    assert list(fit_runs(runs_of([*quiet, *points()[5:]]), bootstrap=20).laws) == ["all runs"]


def test_designs_by_a_setting():
    made = [*points(settings={"optim.weight_decay": 0.1}), *points(settings={"optim.weight_decay": 0.0}, shift=0.2)]
    fits = fit_runs(runs_of(made), by=["optim.weight_decay"], bootstrap=20)
    assert list(fits.laws) == ["optim.weight_decay=0.1", "optim.weight_decay=0.0"]


def test_of_learning_rates_the_best_of_each_size_and_budget_counts():
    made = [
        *points(settings={"optim.learning_rate": 0.001}),
        *points(settings={"optim.learning_rate": 0.01}, shift=1.0),
    ]
    made[40]["loss"] = 0.1  # one lucky seed; the mean of both is still worse
    made[41]["loss"] = 99.0
    fits = fit_runs(runs_of(made), bootstrap=20)
    assert fits.notes == [
        "all runs: 32 of 64 runs left out; the best optim.learning_rate of each size and budget counts"
    ]
    assert sorted(fits.laws["all runs"].loss) == sorted(p["loss"] for p in made[:32])


def test_a_repeated_run_counts_once():
    old = [p | {"loss": 9.0, "record": {**p["record"], "started": "2025-01-01"}} for p in points()[:3]]
    fits = fit_runs(runs_of([*old, *points()]), bootstrap=20)
    assert len(fits.laws["all runs"].loss) == 32
    assert 9.0 not in fits.laws["all runs"].loss
    assert fits.notes == ["all runs: 3 older runs of the same design and seed as a newer one left out"]


def test_what_did_not_finish_is_left_out():
    made = points()
    made[0] |= {"status": "diverged"}
    made[1]["summary"] = {"tokens": 1e8, "eval/loss": float("inf")}
    made[2]["summary"] = {"tokens": None}
    fits = fit_runs(runs_of(made), bootstrap=20)
    assert len(fits.laws["all runs"].loss) == 29
    assert fits.notes == ["3 of 32 runs left out: not finished, or without eval/loss"]


def test_a_design_without_enough_runs_does_not_hide_the_others():
    fits = fit_runs(runs_of([*points(), *points(kind="mla")[:4]]), bootstrap=20)
    assert list(fits.laws) == ["attention=gqa"]
    assert "1 size and 2 token budgets cannot determine" in fits.refused["attention=mla"]
    assert any(line.startswith("attention=mla: no law: 4 runs") for line in lines(fits))


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"status": "failed"}, {}, "none of 32 runs has finished with a finite eval/loss"),
        ({}, {"metric": "eval/accuracy"}, "--metric eval/accuracy is no loss"),
        ({}, {"metric": "eval/bpb"}, "--metric eval/bpb: no run has it"),
        ({}, {"by": ["atention"]}, r"--by atention: .* did you mean attention\?"),
        (
            {"record": {"params": 5}, "summary": {"tokens": 5}},
            {},
            "^2 runs of 1 size and 1 token budget cannot determine",
        ),
    ],
)
def test_nothing_to_fit(change, arguments, message):
    with pytest.raises(ConfigError, match=message):
        fit_runs(runs_of([p | change for p in points()]), **arguments)


def test_words():
    found = fit_runs(runs_of(points()), bootstrap=50)
    (found_law,) = found.laws.values()
    said = lines(found)
    assert said[0] == f"all runs: {formula(found_law)}"
    E, A, B, alpha, beta = (f"{getattr(found_law, name):.3g}" for name in TRUE)
    assert formula(found_law) == f"L = {E} + {A} / N^{alpha} + {B} / D^{beta}"
    assert said[1] == "  from 32 runs, 4 sizes, 4 token budgets; N counts all trainable parameters, D tokens"
    for name in TRUE:
        (line,) = [line for line in said if line.startswith(f"  {name} ")]
        low, high = found_law.intervals[name]
        assert line.split() == [
            name, f"{getattr(found_law, name):.4g}", "95", "%", f"{low:.4g}", "to", f"{high:.4g}",
        ]  # fmt: skip
    largest = 6 * SIZES["124m"] * 4000 * 2e5
    first, second = best_sizes(found_law)
    assert first.startswith(f"best at {largest:.3g} FLOPs (6 N D): N = ")
    assert second.endswith("; an extrapolation")
    best = found_law.optimal(1e17)
    (text,) = best_sizes(found_law, [1e17])
    assert f"loss {best.loss:.4f}" in text
    assert f"N = {best.n_params / 1e6:.3g}M (" in text


def test_one_token_budget_has_no_best_size():
    fits = fit_runs(runs_of([p for p in points() if p["settings"]["train.steps"] == 1000]), bootstrap=20)
    (found,) = fits.laws.values()
    assert formula(found).count("/") == 1
    assert best_sizes(found) == ["no best size for a budget: all runs have one token budget, which is part of E"]


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_sweep(tmp_path / "s", [p | {"summary": {**p["summary"], "eval/loss": p["loss"]}} for p in points()])
    assert main(["--fit", "scaling", "s"]) == 0
    out = capsys.readouterr().out
    expected = fit_runs(find_runs(["s"]))
    assert out.startswith("\n".join(lines(expected)))
    assert "written to s: scaling.png" in out
    assert (tmp_path / "s" / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert main(["--fit", "scaling", "s", "--no-plots"]) == 0
    assert "written" not in capsys.readouterr().out
    assert main(["--fit", "scaling", "s", "--out", "o", "--by", "attention"]) == 0
    assert (tmp_path / "o" / "scaling.png").is_file()
