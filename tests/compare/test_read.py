import json
import math

import pytest

from lmxexp.compare.read import find_runs
from lmxexp.interfaces import ConfigError
from tests.compare.made_runs import make_run, make_sweep

POINTS = [{"choices": {"attention": kind}, "seed": seed} for kind in ("mha", "gqa") for seed in (1, 2)]


def test_a_run(tmp_path):
    path = make_run(tmp_path / "a", {"attention": "mha"}, {"model.d_ff": 352}, seed=3, loss=2.5, record={"params": 7})
    (run,) = find_runs([path])
    assert (run.path, run.name, run.status, run.error, run.sweep, run.point) == (path, "a", "ok", None, None, None)
    assert (run.seed, run.data_seed, run.fingerprint) == (3, 3, "f" * 16)
    assert (run.choices["attention"], run.flat["model.d_ff"], run.config["seed"]) == ("mha", 352, 3)
    assert run.summary["eval/loss"] == 2.5
    assert [line["eval/loss"] for line in run.lines("eval/loss")][-1] == 2.5
    assert len(run.metrics()) == 20
    assert run.lines("eval/loss") is run.lines("eval/loss")


def test_budgets(tmp_path):
    path = make_run(tmp_path / "a", record={"params": 7, "flops_per_token": 6}, tokens_per_s=1000.0, peak_gb=0.25)
    (run,) = find_runs([path])
    tokens = 200 * 2048
    expected = {"params": 7, "tokens": tokens, "flops": 6 * tokens, "steps": 200, "time": tokens / 1000, "memory": 0.25}
    assert {kind: run.budget(kind) for kind in expected} == expected
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "outcome.json").write_text('{"status": "failed"}')
    (empty,) = find_runs([tmp_path / "b"])
    assert {empty.budget(kind) for kind in expected} == {None}


def test_a_sweep_in_the_order_of_its_points(tmp_path):
    many = [{"choices": {"attention": "mha"}, "seed": seed} for seed in range(12)]
    runs = find_runs([make_sweep(tmp_path / "s", many)])
    assert [run.seed for run in runs] == list(range(12))
    assert {(run.sweep, run.sweep_dir) for run in runs} == {("s", tmp_path / "s")}
    assert runs[3].point["num"] == 3
    assert runs[3].overrides == ("attention=mha", "seed=3")


def test_any_mix_of_runs_sweeps_and_folders_above_each_run_once(tmp_path, monkeypatch):
    sweep = make_sweep(tmp_path / "sweeps" / "s", POINTS)
    one = make_run(tmp_path / "runs" / "day" / "one", seed=7)
    two = make_run(tmp_path / "runs" / "day" / "two", seed=8)
    assert len(find_runs([tmp_path])) == 6
    assert len(find_runs([sweep, one])) == 5
    assert len(find_runs([tmp_path / "runs", sweep, two, tmp_path])) == 6
    monkeypatch.chdir(tmp_path)
    assert len(find_runs(["sweeps", tmp_path / "sweeps"])) == 4
    (point,) = find_runs(["sweeps/s/0_attention=mha,seed=1"])
    assert (point.sweep, point.point["num"]) == ("s", 0)


def test_points_that_failed_early_or_have_not_started(tmp_path):
    points = [
        *POINTS,
        {"choices": {"attention": "mqa"}, "seed": 1, "status": "failed", "error": "OSError: no space", "early": True},
        {"choices": {"attention": "mqa"}, "seed": 2, "status": "waiting"},
        {"choices": {"attention": "mqa"}, "seed": 3, "status": "running"},
        {"choices": {"attention": "mqa"}, "seed": 4, "status": "pruned"},
    ]
    failed, waiting, running, pruned = find_runs([make_sweep(tmp_path / "s", points)])[4:]
    assert (failed.status, failed.error, failed.config, failed.seed) == ("failed", "OSError: no space", {}, 1)
    assert (waiting.status, waiting.seed, waiting.summary) == ("waiting", 2, {})
    assert running.status == "running"
    assert pruned.status == "pruned"


def test_the_outcome_counts_before_the_summary(tmp_path):
    path = make_run(tmp_path / "a")
    (path / "outcome.json").write_text(json.dumps({"status": "killed", "error": "killed by signal 9"}))
    (run,) = find_runs([path])
    assert (run.status, run.error) == ("killed", "killed by signal 9")


def test_infinities_are_numbers(tmp_path):
    (run,) = find_runs([make_run(tmp_path / "a", summary={"eval/loss": "inf", "train/loss": "nan"})])
    assert run.summary["eval/loss"] == math.inf
    assert math.isnan(run.summary["train/loss"])


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "summary.json"])
def test_a_damaged_run_does_not_hide_the_others(tmp_path, name):
    make_run(tmp_path / "good")
    (make_run(tmp_path / "bad") / name).write_text("{ not\nthis: [")
    bad, good = find_runs([tmp_path])
    assert (good.status, bad.status) == ("ok", "failed")
    assert bad.error.startswith(f"{name} cannot be read")


def test_what_holds_no_run(tmp_path):
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "sweep").mkdir()
    (tmp_path / "runs" / "sweep" / "sweep.json").write_text("{")
    for path, message in (
        (tmp_path / "empty", "empty holds no run: give"),
        (tmp_path / "rums" / "x", r"no such directory; .* has no rums; did you mean runs\?"),
        (tmp_path / "runs" / "a" / "run.json", "is a file: give the directory"),
        (tmp_path / "runs" / "sweep", r"sweep.json is damaged .*: give the same sweep command again"),
    ):
        with pytest.raises(ConfigError, match=message):
            find_runs([path])
    with pytest.raises(ConfigError, match="no path was given"):
        find_runs([])
    with pytest.raises(ConfigError, match=r"(?s)2 settings.*empty.*rums"):
        find_runs([tmp_path / "empty", tmp_path / "rums"])


def test_mlx_and_hydra_are_not_needed(tmp_path):
    import subprocess
    import sys

    make_sweep(tmp_path / "s", [{**p, "loss": 3 + i / 10} for i, p in enumerate(POINTS)])
    code = (
        "import sys; from lmxexp.compare.__main__ import main; "
        "assert main([sys.argv[1], '--no-plots']) == 0; "
        "sys.exit(any(m.split('.')[0] in ('mlx', 'hydra', 'wandb', 'datasets') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True).returncode == 0
