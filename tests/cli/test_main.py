import csv
import importlib
import logging
import math
import signal
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lmxexp.interfaces import ConfigError

from .conftest import Result


def raise_(error):
    def behave(cfg, run_dir):
        raise error

    return behave


def test_one_run(cli, tmp_path):
    assert cli("attention=mha", "hydra.run.dir=here") == 0, cli.err
    [cfg] = cli.runs
    assert (cfg.choice.attention, cfg.name) == ("mha", "llama-mha")
    assert "hydra" not in cfg
    assert OmegaConf.to_container(cfg)["schedule"]["steps"] == "${train.steps}"
    assert cli.argvs[0][1:] == ["attention=mha", "hydra.run.dir=here"]
    assert "model/attention" not in (tmp_path / "here/.hydra/overrides.yaml").read_text()


def test_a_refused_command_leaves_a_run_as_it_is(cli, tmp_path):
    assert cli("attention=mha", "hydra.run.dir=here") == 0, cli.err
    (tmp_path / "here/run.json").write_text("{}")
    before = {path: path.read_bytes() for path in (tmp_path / "here/.hydra").iterdir()}
    assert cli("train.steps=abc", "hydra.run.dir=here") == 1
    assert {path: path.read_bytes() for path in (tmp_path / "here/.hydra").iterdir()} == before


def test_a_refused_command_leaves_no_directory(cli, tmp_path):
    assert cli("train.steps=abc") == 1
    assert not list(tmp_path.glob("outputs/runs/*/*"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    assert cli("train.steps=abc", "hydra.run.dir=mine") == 1
    assert (tmp_path / "mine/notes.txt").exists()


def test_packages_that_announce_themselves_are_not_heard(cli):
    logging.getLogger("datasets").setLevel(logging.NOTSET)
    assert cli() == 0, cli.err
    assert not logging.getLogger("datasets.config").isEnabledFor(logging.INFO)
    assert logging.getLogger("lmxexp").isEnabledFor(logging.INFO)


def test_the_default_directory_carries_the_name(cli, tmp_path, monkeypatch):
    assert cli("name=first") == 0, cli.err
    [directory] = tmp_path.glob("outputs/runs/*/*_first")
    assert (directory / "config.yaml").is_file()
    monkeypatch.setenv("LMXEXP_OUTPUTS", "elsewhere")
    assert cli() == 0, cli.err
    assert list(tmp_path.glob("elsewhere/runs/*/*_llama-gqa"))


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ({"status": "ok"}, 0),
        ({"status": "diverged", "score": math.inf}, 1),
        ({"status": "failed", "score": math.inf}, 1),
        ({"status": "stopped", "score": math.inf, "signal": signal.SIGTERM}, 143),
        ({"status": "stopped", "score": math.inf, "signal": signal.SIGINT}, 130),
    ],
)
def test_exit_codes_of_a_single_run(cli, result, code):
    cli.behave = lambda cfg, run_dir: Result(run_dir, **result)
    assert cli() == code


def test_a_mistake_of_the_users_is_one_message(cli):
    assert cli("model.n_heads=abc", "train.steps=1.5", "+foo=3") == 1
    assert cli.err.splitlines() == [
        "lmxexp: error: 3 settings cannot work:",
        "  train.steps=1.5: expected int, got float",
        "  model.n_heads=abc: expected int, got text (read by model.attention.n_heads)",
        "  +foo=3 would be ignored: nothing in this run reads foo",
    ]
    assert cli("attention=gqq") == 1
    assert "did you mean gqa?" in cli.err
    cli.behave = raise_(ConfigError("train.batch_size=3 must be even"))
    assert cli() == 1
    assert cli.err == "lmxexp: error: train.batch_size=3 must be even\n"


def test_a_bug_is_one_line_and_its_traceback_a_file(cli, tmp_path):
    cli.behave = raise_(RuntimeError("boom\nand more"))
    assert cli("hydra.run.dir=here") == 1
    assert cli.err == f"lmxexp: error: RuntimeError: boom and more (see {tmp_path / 'here/traceback.txt'})\n"
    written = (tmp_path / "here" / "traceback.txt").read_text()
    assert written.startswith("Traceback")
    assert "RuntimeError: boom" in written


@pytest.mark.parametrize("asked", [["debug.traceback=true"], ["debug=default"]])
def test_the_whole_traceback_when_it_is_asked_for(cli, asked):
    cli.behave = raise_(RuntimeError("boom"))
    assert cli(*asked) == 1
    assert "Traceback" in cli.err
    assert "in behave" in cli.err
    assert cli("attention=gqq", *asked) == 1
    assert "Traceback" in cli.err


def test_ctrl_c_before_training(cli):
    cli.behave = raise_(KeyboardInterrupt())
    assert cli() == 130
    assert "stopped by Ctrl-C" in cli.err
    assert "Traceback" not in cli.err


def test_a_sweep_goes_on_after_a_failure_and_says_so(cli, tmp_path):
    def behave(cfg, run_dir):
        if cfg.choice.attention == "mqa":
            raise ConfigError("no mqa today")
        return Result(run_dir, *(("diverged", math.inf) if cfg.seed == 2 else ("ok", 1.25)))

    cli.behave = behave
    # Overrides on both sides of the flag; the values that all points share are no part of a directory's name.
    assert (
        cli("train.steps=3", "hydra.sweep.dir=sweep", "-m", "attention=mha,mqa", "model/norm=rmsnorm", "seed=1,2") == 1
    )
    assert [(c.choice.attention, c.seed, c.sweep.name) for c in cli.runs] == [
        (kind, seed, "sweep") for kind in ("mha", "mqa") for seed in (1, 2)
    ]
    directories = sorted(p.name for p in (tmp_path / "sweep").iterdir() if p.is_dir())
    assert directories == [
        "0_attention=mha,seed=1",
        "1_attention=mha,seed=2",
        "2_attention=mqa,seed=1",
        "3_attention=mqa,seed=2",
    ]
    log, _, table = cli.out.partition("reason")
    assert "no mqa today" in log, "said at once"
    rows = [line.split() for line in table.splitlines()[2:6]]
    assert [row[3] for row in rows] == ["ok", "diverged", "failed", "failed"]
    assert rows[0] == ["0", "attention=mha", "seed=1", "ok", "1.2500"]
    assert rows[2][4:] == ["no", "mqa", "today"]
    with (tmp_path / "sweep" / "points.csv").open() as file:
        points = list(csv.DictReader(file))
    assert [(p["attention"], p["seed"], p["status"]) for p in points] == [
        ("mha", "1", "ok"),
        ("mha", "2", "diverged"),
        ("mqa", "1", "failed"),
        ("mqa", "2", "failed"),
    ]
    assert (tmp_path / "sweep" / directories[2] / "console.log").read_text().strip() == "lmxexp: error: no mqa today"


def test_a_sweep_that_works(cli):
    assert cli("-m", "seed=1,2") == 0, cli.err
    assert cli.out.count("score 1.5000") == 2


def test_a_signal_ends_the_whole_sweep(cli):
    cli.behave = lambda cfg, run_dir: Result(run_dir, "stopped", math.inf, signal.SIGINT)
    assert cli("-m", "seed=1,2,3") == 130
    assert len(cli.runs) == 1
    assert "[1/3] stopped  seed=1" in cli.out
    assert cli.out.count("not run") == 2


def test_a_kind_that_does_not_exist_stops_a_sweep_before_it_starts(cli):
    assert cli("-m", "attention=mha,gqq", "seed=1,2") == 1
    assert "attention=gqq: no such kind; did you mean gqa?" in cli.err
    assert cli.runs == []


def test_sweeper_params_take_short_names(cli, tmp_path):
    (tmp_path / "my" / "experiment").mkdir(parents=True)
    (tmp_path / "my" / "experiment" / "grid.yaml").write_text(
        "# @package _global_\n# Two.\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      attention: mha,mqa\n"
    )
    assert cli("experiment=grid", "--config-dir", "my") == 0, cli.err
    assert [c.choice.attention for c in cli.runs] == ["mha", "mqa"]


def test_a_file_of_the_users_with_our_name_is_told(cli, tmp_path):
    for name in ("adamw", "mine"):
        (tmp_path / "my" / "optim").mkdir(parents=True, exist_ok=True)
        (tmp_path / "my" / "optim" / f"{name}.yaml").write_text("# Mine.\n_target_: builtins.dict\n")
    assert cli("--config-dir=my", "-c", "job") == 0
    assert "warning" in cli.err
    assert "optim/adamw.yaml" in cli.err
    assert "mine.yaml" not in cli.err


def test_a_configuration_path_of_the_users_keeps_our_groups(cli, tmp_path):
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "study.yaml").write_text("defaults:\n  - config\n  - _self_\ntrain:\n  steps: 3\n")
    assert cli("-cp", "my", "-cn", "study", "attention=mha") == 0, cli.err
    assert (cli.runs[0].train.steps, cli.runs[0].choice.attention) == (3, "mha")
    assert cli("-cp", "my", "-cn", "study", "train.step=3") == 1
    assert "did you mean train.steps?" in cli.err


def test_help_lists_every_kind_of_ours_and_the_users(cli, tmp_path):
    folder = tmp_path / "my" / "model" / "attention"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package model.attention\n\n# A kind of mine: it forgets.\n_target_: x.Y\n")
    assert cli("--help", "--config-dir", "my") == 0
    listed = {line.split()[0] for line in cli.out.replace("  * ", "    ").splitlines() if line.startswith("    ")}
    ours = importlib.import_module("lmxexp.cli.conf")
    for group in ours.groups(ours.conf_dir()):
        if group == "hydra":
            continue
        for kind, file in ours.kinds(ours.conf_dir(), group).items():
            assert kind in listed, kind
            assert ours.describe(file) in cli.out
            assert ours.describe(file), f"{file} says nothing about itself"
    assert "A kind of mine: it forgets." in cli.out
    assert "_base" not in cli.out
    assert "\033" not in cli.out
    assert "install=bash" in cli.out


def test_hydras_own_help_and_the_version(cli):
    assert cli("--version") == 0
    assert cli.out.startswith("lmxexp ")
    assert cli("--hydra-help") == 0
    assert "Hydra" in cli.out


def test_what_is_shown_is_shown(cli):
    assert cli("attention=mqa", "-c", "job", "attention.bias=true") == 0
    assert OmegaConf.create(cli.out).model.attention.n_kv_heads == 1
    assert cli("--info", "defaults", "attention=mqa") == 0
    assert "model/attention/mqa" in cli.out
    assert cli("--info", "defaults", "attention=mqq") == 1
    assert "did you mean mqa?" in cli.err
    assert not Path("outputs").exists()
