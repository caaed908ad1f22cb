"""The table of a comparison at W&B: read back from the files of a real offline run, and, with a stand-in for the wandb
package, when it is sent at all."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from lmxexp.compare import to_wandb
from lmxexp.compare.comparison import compare
from lmxexp.compare.files import as_csv
from lmxexp.interfaces import ConfigError
from lmxexp.logger.wandb_file import WandbFile, read_wandb_file
from tests.compare.made_runs import make_sweep
from tests.pythonpath import PYTHONPATH

ROWS: list[dict[str, Any]] = [
    {"arm": "attention=mha", "mean": 1.5, "n": 3, "p": None},
    {"arm": "attention=gqa", "mean": float("nan"), "n": np.int64(2), "low": float("-inf"), "better": np.bool_(True)},
]


@pytest.fixture
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name in list(os.environ):
        if name.startswith("WANDB_") or name == "NETRC":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))


def test_rows_become_columns_and_values():
    assert to_wandb.table(ROWS) == (
        ["arm", "mean", "n", "p", "low", "better"],
        [["attention=mha", 1.5, 3, None, None, None], ["attention=gqa", "nan", 2, None, "-inf", True]],
    )
    assert [type(value) for value in to_wandb.table(ROWS)[1][1]] == [str, str, int, type(None), str, bool]


@pytest.mark.usefixtures("no_account")
def test_the_table_is_in_a_run_of_the_sweeps_group(tmp_path):
    for name in ("once", "again"):
        assert to_wandb.send(ROWS, "s" * 200, "proj", "team", mode="offline", directory=_made(tmp_path / name)) is None
    one, two = _files(tmp_path)
    assert one.run == two.run, "compared again, it is the same run"
    assert one.run["run_id"].isalnum()
    assert {k: v for k, v in one.run.items() if k != "run_id"} == {
        "project": "proj",
        "entity": "team",
        "group": "s" * 128,
        "job_type": "comparison",
        "name": "comparison",
        "tags": [],
    }
    assert one.exit_code == 0
    (row,) = one.history
    assert (row["comparison._type"], row["comparison.nrows"], row["comparison.ncols"]) == ("table-file", 2, 6)
    columns, data = to_wandb.table(ROWS)
    tables = [json.loads(path.read_text()) for path in tmp_path.rglob("*.table.json")]
    assert tables == [{"columns": columns, "data": data}] * 2


@pytest.mark.usefixtures("no_account")
def test_a_run_that_goes_on_in_this_process_is_left_alone(tmp_path):
    import wandb

    users = wandb.init(mode="offline", project="users", id="users1", dir=_made(tmp_path / "users"))
    to_wandb.send(ROWS, "sweep", "proj", mode="offline", directory=_made(tmp_path / "ours"))
    assert wandb.run is users
    users.log({"x": 1})
    users.finish()
    ours, theirs = _files(tmp_path)
    assert (ours.run["project"], len(ours.history), ours.exit_code) == ("proj", 1, 0)
    assert (theirs.run["project"], [row["x"] for row in theirs.history]) == ("users", [1])


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def _files(directory: Path) -> list[WandbFile]:
    import wandb

    wandb.teardown()  # a run's file is complete a moment after finish; this waits for it
    return [read_wandb_file(path) for path in sorted(directory.rglob("run-*.wandb"))]


def test_what_is_sent_of_a_comparison_is_what_its_csv_file_holds(fake, tmp_path):
    comparison = compare([_sweep(tmp_path, {"project": "proj", "entity": "team", "group": None, "mode": "auto"})])
    assert to_wandb.send_beside_runs(comparison) == "https://example.org/run"
    (arguments,) = fake.inits
    assert (arguments["project"], arguments["entity"], arguments["group"]) == ("proj", "team", "shapes")
    sent = fake.logged[0]["comparison"]
    header, *lines = csv.reader(io.StringIO(as_csv(comparison)))
    assert sent["columns"] == header
    assert [["" if v is None else str(v) for v in row] for row in sent["data"]] == lines
    assert {row[0] for row in sent["data"]} == {"attention=mha", "attention=gqa"}
    assert sent["data"][0][header.index("mean")] == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("wandb", "sent"),
    [
        (None, False),
        ({"mode": "offline"}, False),
        ({"mode": "disabled"}, False),
        ({"mode": "online"}, True),
        ({"group": "mine"}, True),
    ],
)
def test_it_goes_where_the_runs_are(wandb, sent, fake, tmp_path):
    node = None if wandb is None else {"project": "proj", "entity": None, "group": None, "mode": "auto"} | wandb
    assert (to_wandb.send_beside_runs(compare([_sweep(tmp_path, node)])) is not None) == sent
    assert [a["group"] for a in fake.inits] == ([node.get("group") or "shapes"] if node and sent else [])


def test_of_several_sweeps_or_projects_it_stays_here(fake, tmp_path):
    node = {"project": "proj", "entity": None, "group": None, "mode": "auto"}
    one, two = _sweep(_made(tmp_path / "1"), node), _sweep(_made(tmp_path / "2"), node)
    assert to_wandb.send_beside_runs(compare([one, two])) is None
    assert to_wandb.send_beside_runs(compare([_sweep(_made(tmp_path / "3"), node, node | {"project": "b"})])) is None
    assert fake.inits == []


def _sweep(folder: Path, *wandb: dict[str, Any] | None) -> Path:
    """Two arms of two seeds."""
    points = [
        {"choices": {"attention": kind}, "seed": seed, "loss": 3.0 + 0.2 * at + 0.01 * (-1) ** seed}
        for at, kind in enumerate(("mha", "gqa"))
        for seed in (1, 2)
    ]
    sweep = make_sweep(folder / "shapes", points)
    for num, file in enumerate(sorted(sweep.glob("*/config.yaml"))):
        if node := wandb[num % len(wandb)]:
            config = yaml.safe_load(file.read_text())
            config["logger"] = {"wandb": node}
            file.write_text(yaml.safe_dump(config))
    return sweep


@pytest.mark.usefixtures("no_account")
def test_other_sweeps_have_other_runs(fake):
    for words in (("a", "proj"), ("b", "proj"), ("a", "other"), ("a", "proj", "team"), ("a", "proj")):
        to_wandb.send(ROWS, *words)
    ids = [arguments["id"] for arguments in fake.inits]
    assert len(set(ids)) == 4
    assert ids[0] == ids[4]


# --- with a stand-in for the package ---------------------------------------------------------------------------------


class FakeWandb(SimpleNamespace):
    """As much of the package as is called."""

    def __init__(self) -> None:
        super().__init__(inits=[], logged=[], finished=[], torn_down=0, logged_in=True, error=None, hangs=False)
        self.Settings = lambda **settings: settings
        self.Table = lambda **arguments: arguments

    def setup(self, settings):
        assert settings["silent"]

    def login(self, prompt, verify):
        assert not prompt
        assert not verify
        return self.logged_in

    def init(self, **arguments):
        self.inits.append(arguments)
        if self.hangs:
            time.sleep(5)
        if self.error and arguments["id"]:
            raise self.error
        return SimpleNamespace(
            url="https://example.org/run",
            log=self.logged.append,
            finish=lambda exit_code: self.finished.append(exit_code),
        )

    def teardown(self, exit_code=0):
        self.torn_down += 1


@pytest.fixture
def fake(no_account, monkeypatch) -> FakeWandb:
    package = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", package)
    return package


def test_online_it_is_sent_and_nothing_is_left_here(fake, capsys):
    assert to_wandb.send(ROWS, "sweep", "proj") == "https://example.org/run"
    (arguments,) = fake.inits
    assert (arguments["mode"], arguments["group"], arguments["entity"]) == ("online", "sweep", None)
    assert arguments["resume"] == "allow"
    assert not arguments["dir"].exists()
    columns, data = to_wandb.table(ROWS)
    assert fake.logged == [{"comparison": {"columns": columns, "data": data, "allow_mixed_types": True}}]
    assert fake.finished == [0]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("mode", "variable", "logged_in", "sent"),
    [
        ("auto", None, True, True),
        ("auto", None, False, False),
        ("auto", "offline", True, False),
        ("auto", "dryrun", True, False),
        ("auto", "disabled", True, False),
        ("auto", "online", True, True),
        ("online", "offline", True, True),
        ("online", None, False, False),
        ("disabled", "online", True, False),
    ],
)
def test_mode(mode, variable, logged_in, sent, fake, monkeypatch, capsys):
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    fake.logged_in = logged_in
    assert (to_wandb.send(ROWS, "sweep", "proj", mode=mode) is not None) == sent
    assert bool(fake.inits) == sent
    assert capsys.readouterr() == ("", "")


def test_a_wrong_variable_is_a_clear_error(fake, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "onlien")
    with pytest.raises(ConfigError, match="WANDB_MODE=onlien is none of online"):
        to_wandb.send(ROWS, "sweep", "proj")


def test_a_refusal_is_one_line(fake, capsys):
    fake.error = RuntimeError("no\npermission")
    assert to_wandb.send(ROWS, "sweep", "proj") is None
    assert capsys.readouterr().err == "W&B: the comparison was not sent (no permission)\n"
    assert fake.torn_down == 1


def test_a_run_that_the_user_deleted_is_made_anew(fake):
    fake.error = RuntimeError("run cmp1 was previously created and deleted; try a new run name")
    assert to_wandb.send(ROWS, "sweep", "proj") == "https://example.org/run"
    assert [(a["id"] is None, a["resume"]) for a in fake.inits] == [(False, "allow"), (True, None)]


def test_an_answer_is_not_waited_for_without_bound(fake, monkeypatch, capsys):
    monkeypatch.setattr(to_wandb, "_INIT_SECONDS", 0.1)
    monkeypatch.setattr(to_wandb, "_FINISH_SECONDS", 0.1)
    fake.hangs = True
    began = time.monotonic()
    assert to_wandb.send(ROWS, "sweep", "proj") is None
    assert time.monotonic() - began < 2
    assert "no answer within 0.2 s" in capsys.readouterr().err


@pytest.mark.usefixtures("no_account")
def test_a_server_out_of_reach_costs_its_time_and_no_more():
    """The package itself, in a process of its own; and neither MLX nor Hydra comes with it."""
    code = """if True:
        import sys
        from lmxexp.compare import to_wandb
        to_wandb._INIT_SECONDS = 1.0
        assert to_wandb.send([{"arm": "a"}], "sweep", "proj") is None
        assert not {"mlx.core", "hydra"} & set(sys.modules)
    """
    env = os.environ | {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0123456789" * 4}
    env["PYTHONPATH"] = PYTHONPATH
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, text=True, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 20
    (line,) = done.stderr.splitlines()
    assert line.startswith("W&B: the comparison was not sent (")
    assert "127.0.0.1:9" in line
