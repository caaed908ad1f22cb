"""Plugins of Hydra that are not installed, and sweepers that are not ours."""

import json
import math

import pytest
from hydra.core.config_store import ConfigStore

from lmxexp.compose import install
from lmxexp.sweep.ledger import Outcome, PointProcessError, write_outcome

from .conftest import Result

EXTRAS = {
    "hydra/launcher=joblib": "joblib",
    "hydra/launcher=submitit_local": "submitit",
    "hydra/launcher=submitit_slurm": "submitit",
    "hydra/launcher=ray": "ray",
    "hydra/sweeper=optuna": "optuna",
    "hparams_search=optuna": "optuna",
}


@pytest.fixture
def no_plugins(monkeypatch):
    """Hydra without what plugins have registered, whether they are installed or not."""
    install()
    hydra = ConfigStore.instance().repo["hydra"]
    for group, names in {
        "launcher": ("joblib", "submitit_local", "submitit_slurm", "ray"),
        "sweeper": ("optuna",),
    }.items():
        for name in names:
            monkeypatch.delitem(hydra[group], f"{name}.yaml", raising=False)
    monkeypatch.delitem(hydra["sweeper"], "sampler", raising=False)


@pytest.mark.parametrize("choice", EXTRAS)
def test_a_plugin_that_is_not_installed(no_plugins, cli, choice, tmp_path):
    assert cli("-m", "seed=1,2", choice) == 1
    shown = choice.replace("hparams_search", "hydra/sweeper")
    expected = f"{shown} needs a plugin of Hydra that is not installed: pip install 'lmxexp[{EXTRAS[choice]}]'"
    assert cli.err == f"lmxexp: error: {expected}\n"
    assert list(tmp_path.iterdir()) == []


def test_settings_of_missing_plugins_are_not_told_as_mistakes(no_plugins, cli):
    more = ["hydra.launcher.n_jobs=2", "hydra/sweeper/sampler=random", "hydra.sweeper.n_trials=3", "train.steps=5"]
    assert cli("-m", "hydra/launcher=joblib", "hparams_search=optuna", *more) == 1
    assert [line.strip() for line in cli.err.splitlines()] == [
        "lmxexp: error: 2 settings cannot work:",
        "hydra/launcher=joblib needs a plugin of Hydra that is not installed: pip install 'lmxexp[joblib]'",
        "hydra/sweeper=optuna needs a plugin of Hydra that is not installed: pip install 'lmxexp[optuna]'",
    ]


def test_a_launcher_that_nobody_has_is_a_mistake(no_plugins, cli):
    assert cli("-m", "seed=1,2", "hydra/launcher=jobli") == 1
    assert "hydra/launcher=jobli: no such kind; " in cli.err
    assert "pip" not in cli.err


def test_a_plugin_that_is_installed_is_not_asked_for(cli):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs hydra-joblib-launcher")
    assert cli("-m", "hydra/launcher=joblib", "sede=1,2") == 1
    assert cli.err == "lmxexp: error: sede=1,2: no such key; did you mean seed?\n"


def test_a_sweeper_of_others_is_watched_and_reported(cli, tmp_path):
    def behave(cfg, run_dir):
        if cfg.seed == 3:
            raise RuntimeError("no such luck")
        return Result(run_dir, *(("ok", math.nan) if cfg.seed == 2 else ("ok", 1.25)))

    cli.behave = behave
    command = ["-m", "hydra/sweeper=basic", "train.steps=3", "seed=1,2,3", "sweep=theirs"]
    assert cli(*command) == 1
    # What all points share is in no name: neither of a directory nor of a row.
    sweep = tmp_path / "outputs" / "sweeps" / "theirs"
    names = ["0_seed=1", "1_seed=2", "2_seed=3"]
    assert sorted(p.name for p in sweep.iterdir() if p.is_dir()) == names
    assert [(c.name, c.sweep.mode, list(c.sweep.overrides)) for c in cli.runs] == [
        (f"seed={i}", "basic", [f"seed={i}"]) for i in (1, 2, 3)
    ]
    log = cli.out.partition("reason")[0].splitlines()
    assert [line.rstrip() for line in log[:4]] == [
        "ok       seed=1  score 1.2500",
        "ok       seed=2",  # nothing could be compared with nan: it counts as infinite
        "failed   seed=3",
        "    RuntimeError: no such luck (see traceback.txt)",
    ]
    assert json.loads((sweep / "1_seed=2" / "outcome.json").read_text())["score"] == "inf"
    ledger = json.loads((sweep / "sweep.json").read_text())
    assert ledger["sweeper"] == "basic"
    assert ledger["match"] is None
    identities = [c.sweep.identity for c in cli.runs]
    assert [(p["num"], p["dir"], p["identity"], p["overrides"]) for p in ledger["points"]] == [
        (i, name, identity, [f"seed={i + 1}"]) for i, (name, identity) in enumerate(zip(names, identities, strict=True))
    ]
    # Given again, what has a result does not run, and is not told again.
    assert cli(*command) == 1
    assert [c.seed for c in cli.runs] == [1, 2, 3, 3]
    assert cli.out.startswith("failed   seed=3")
    assert len(json.loads((sweep / "sweep.json").read_text())["points"]) == 3


def test_a_killed_point_of_a_sweeper_of_others_is_told_as_killed(cli, tmp_path):
    """As its process would have left it; that the others were interrupted by an error does not matter."""

    def behave(cfg, run_dir):
        if cfg.seed == 1:
            return Result(run_dir)
        raise KeyboardInterrupt  # not an Exception: leaves the point without a word

    cli.behave = behave
    assert cli("-m", "hydra/sweeper=basic", "seed=1,2,3", "sweep=theirs") == 130
    sweep = tmp_path / "outputs" / "sweeps" / "theirs"
    outcomes = [json.loads((sweep / name / "outcome.json").read_text()) for name in ("0_seed=1", "1_seed=2")]
    assert [o["status"] for o in outcomes] == ["ok", "killed"]
    assert outcomes[1]["error"] == "its process ended without a word"
    assert "killed   seed=2" in cli.out


def test_optuna_goes_on_after_nan_and_after_a_process_that_died(cli, tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs hydra-optuna-sweeper")
    from lmxexp.sweep import point

    run_point = point.run_point

    def dies(cfg, hydra, run_dir, **kwargs):
        if hydra.job.num == 1:
            write_outcome(run_dir, Outcome("", "running", overrides=["the second"]))
            raise PointProcessError("its process was killed by signal 9 (SIGKILL)")  # as the launcher tells it
        return run_point(cfg, hydra, run_dir, **kwargs)

    monkeypatch.setattr(point, "run_point", dies)
    cli.behave = lambda cfg, run_dir: Result(run_dir, "ok", math.nan if run_dir.name.startswith("0_") else 1.25)
    assert cli("-m", "hparams_search=optuna", "hydra.sweeper.n_trials=4", "seed=7", "sweep=theirs") == 1
    sweep = tmp_path / "outputs" / "sweeps" / "theirs"
    outcomes = [json.loads(file.read_text()) for file in sorted(sweep.glob("*/outcome.json"))]
    assert [(o["status"], o["score"]) for o in outcomes] == [
        ("ok", "inf"),
        ("killed", "inf"),
        ("ok", 1.25),
        ("ok", 1.25),
    ]
    assert "best_value: 1.25" in (sweep / "optimization_results.yaml").read_text()


@pytest.mark.parametrize("asked", ["match=params", "tune=optim.learning_rate"])
def test_a_sweeper_of_others_does_not_plan(cli, asked):
    assert cli("-m", "hydra/sweeper=basic", "seed=1,2", asked) == 1
    assert cli.runs == []
    assert f"{asked} goes with hydra/sweeper=grid, random or halving, which plan all points" in cli.out
