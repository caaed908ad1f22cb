"""How a sweep chooses its points: ``hparams_search=optuna``, random, halving, grid."""

import math
import re
from itertools import cycle
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

import lmxexp
from lmxexp.cli import conf
from lmxexp.cli.validate import check
from lmxexp.compose import install, started
from lmxexp.sweep import points as lines
from tests.end_to_end.tiny_sweeps import begun, points, sweep, table, with_kinds

SEARCHES = sorted(conf.kinds(conf.conf_dir(), "hparams_search"))
OPTIMIZERS = sorted(conf.kinds(conf.conf_dir(), "optim"))


def test_there_are_four_searches():
    assert SEARCHES == ["grid", "halving", "optuna", "random"]


@pytest.mark.parametrize(
    ("search", "optimizers"),
    [(search, OPTIMIZERS[i :: len(SEARCHES)]) for i, search in enumerate(SEARCHES)]
    + [pytest.param(search, OPTIMIZERS, marks=pytest.mark.exhaustive) for search in SEARCHES],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} of them",
)
def test_what_is_searched_goes_with_every_optimizer(search, optimizers):
    install()
    file = conf.conf_dir() / "hparams_search" / f"{search}.yaml"
    params = OmegaConf.load(file).hydra.sweeper.params
    overrides = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    drawn = lines.random(overrides, 3, seed=0)
    value: Any = overrides[0].value()
    rates = [value.start, value.end] if overrides[0].is_interval_sweep() else [float(v) for v in value.list]
    for optim, line in zip(optimizers, cycle(drawn), strict=False):
        check(lmxexp.compose([f"optim={optim}", *line]), line)
    for optim in OPTIMIZERS:
        default = OmegaConf.load(conf.conf_dir() / "optim" / f"{optim}.yaml").learning_rate
        assert min(rates) <= default <= max(rates) or optim in ("prodigy", "schedule_free_sgd"), optim


def test_optuna_learns_from_what_came_out(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs hydra-optuna-sweeper")
    command = [
        "hparams_search=optuna",
        "optim.learning_rate=choice(1e-3,1e-2,1e30)",
        "attention=choice(gqa,raises)",
        "train.max_grad_norm=null",
        "schedule=constant",
    ]
    done = sweep(with_kinds(tmp_path), *command, "hydra.sweeper.n_trials=4")
    assert done.returncode == 1
    rows = points(tmp_path)
    assert len(rows) == 4, "the search goes on, whatever becomes of a trial"
    assert {p["status"] for p in rows} == {"ok", "diverged", "failed"}, done.stdout + done.stderr
    for row in rows:
        expected = (
            "failed" if row["attention"] == "raises" else "diverged" if row["optim.learning_rate"] == "1e+30" else "ok"
        )
        assert row["status"] == expected
        assert math.isfinite(float(row["score"])) == (expected == "ok")
        assert bool(row["reason"]) == (expected != "ok")
    found = OmegaConf.load(tmp_path / "outputs/sweeps/s/optimization_results.yaml")
    best = min(rows, key=lambda p: float(p["score"]))
    assert found.best_value == float(best["score"])
    assert str(found.best_params["optim.learning_rate"]) == best["optim.learning_rate"]
    # The same command draws the same trials: what has a result does not run again, and a larger search goes on.
    before, first = begun(tmp_path), table(tmp_path).splitlines()
    done = sweep(tmp_path, *command, "hydra.sweeper.n_trials=5")
    after = begun(tmp_path)
    failed = {f"{p['point']}_" for p in rows if p["status"] == "failed"}
    assert {name: n - before.get(name, 0) for name, n in after.items()} == {
        name: int(name not in before or name[:2] in failed) for name in after
    }
    assert len(after) == 5
    assert table(tmp_path).splitlines()[:5] == first


@pytest.mark.parametrize(
    ("search", "more", "statuses"),
    [
        ("random", ["hydra.sweeper.n_trials=2"], ["ok", "ok"]),
        ("halving", ["hydra.sweeper.n_trials=3"], ["ok", "pruned", "pruned"]),
        ("grid", ["optim.learning_rate=1e-3,1e-2", "schedule=wsd"], ["ok", "ok"]),
    ],
)
def test_searches_without_a_plugin(search, more, statuses, tmp_path):
    done = sweep(tmp_path, f"hparams_search={search}", *more)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = points(tmp_path)
    assert sorted(p["status"] for p in rows) == statuses
    rates = [float(p["optim.learning_rate"]) for p in rows]
    assert len(set(rates)) == len(rows)
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)
    if search == "grid":
        assert rates == [1e-3, 1e-2]
    # The table begins with the best of those that came to their end.
    best = min((p for p in rows if p["status"] == "ok"), key=lambda p: float(p["score"]))
    assert re.search(rf"\breason *\n─+\n{best['point']} ", done.stdout), done.stdout


def test_a_search_is_a_sweep():
    with started() as hydra:
        cfg = hydra.compose_config("config", ["hparams_search=random"], RunMode.MULTIRUN, from_shell=False)
        assert cfg.hydra.mode == RunMode.MULTIRUN
        assert cfg.hydra.sweeper._target_ == "hydra_plugins.lmxexp_sweep.RandomSweeper"
