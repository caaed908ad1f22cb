"""The command, as a process; W&B's server is one of ours."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lmxexp.dashboard.__main__ import main
from tests.pythonpath import PYTHONPATH

pytest.importorskip("wandb_workspaces", reason="pip install 'lmxexp[dashboard]'")

POINTS = [f"attention={kind} seed={seed}" for kind in ("mha", "gqa") for seed in (1, 2)]


def _run(*arguments: str | Path, timeout_s: float = 60.0, **options: Any) -> subprocess.CompletedProcess[str]:
    code = f"""import sys, lmxexp.dashboard.__main__ as m
m.TIMEOUT_SECONDS = {timeout_s}
sys.exit(m.main())"""
    options = {"stdin": subprocess.DEVNULL, "timeout": 60} | options
    env = os.environ | {"PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=env, text=True, capture_output=True, check=False, **options)


def _view(sweep: Path) -> dict[str, Any]:
    return json.loads((sweep / "wandb_workspace.json").read_text())


def test_without_a_key_the_view_is_written_and_nobody_is_asked(make_sweep, no_account):
    sweep = make_sweep(POINTS)
    here, there = pty.openpty()  # on a terminal, where W&B would ask
    done = _run(sweep, "--entity", "my team", stdin=there)
    os.close(here)
    os.close(there)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    path, how = done.stdout.splitlines()
    assert path == str(sweep / "wandb_workspace.json")
    assert how == (
        f"not sent, not logged in: `wandb login`, then `python -m lmxexp.dashboard {sweep} --entity 'my team'`"
    )
    content = _view(sweep)
    assert (content["entity"], content["project"], content["view"]) == ("my team", "proj", None)
    kinds = [p["viewType"] for s in content["spec"]["section"]["panelBankConfig"]["sections"] for p in s["panels"]]
    assert {"Run History Line Plot", "Scatter Plot", "Parallel Coordinates Plot"} == set(kinds)


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_who_is_offline_stays_it(mode, make_sweep, server, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", mode)
    done = _run(make_sweep(POINTS))
    assert done.returncode == 0, done.stderr
    assert f"not sent, WANDB_MODE={mode}: unset it, then `python -m lmxexp.dashboard" in done.stdout
    assert server.saved == []


def test_it_is_saved_and_the_same_one_again(make_sweep, server, capsys):
    sweep = make_sweep(POINTS)
    assert main([str(sweep)]) == 0
    first = capsys.readouterr()
    assert main([str(sweep)]) == 0
    second = capsys.readouterr()
    assert first.err == ""
    one, two = server.saved
    assert (one["entityName"], one["projectName"], one["displayName"]) == ("me", "proj", "Sweep shapes")
    assert one["type"] == "project-view"
    assert "id" not in one
    assert (two["id"], two["name"]) == ("view-1", one["name"])
    short = one["name"].removeprefix("nw-").removesuffix("-v")
    assert first.out == second.out == f"{server.url}/me/proj?nw={short}\n"
    content = _view(sweep)
    assert content["view"] == {"name": one["name"], "id": "view-1", "url": first.out.strip()}
    assert content["entity"] == "me"

    def panels(spec: dict[str, Any]) -> Any:  # their ids are drawn anew
        return [[p["config"] for p in s["panels"]] for s in spec["section"]["panelBankConfig"]["sections"]]

    assert panels(json.loads(two["spec"])) == panels(content["spec"])
    assert json.loads(two["spec"])["section"]["runSets"] == content["spec"]["section"]["runSets"]


@pytest.mark.parametrize(("project", "entity"), [("other", "me"), ("proj", "team")])
def test_in_another_project_it_is_another_one(project, entity, make_sweep, server):
    sweep = make_sweep(POINTS)
    assert main([str(sweep)]) == 0
    assert main([str(sweep), "--project", project, "--entity", entity]) == 0
    assert (server.saved[1]["projectName"], server.saved[1]["entityName"]) == (project, entity)
    assert "id" not in server.saved[1]
    assert server.saved[1]["name"] != server.saved[0]["name"]


def test_another_user_has_another_one(make_sweep, server):
    sweep = make_sweep(POINTS)
    assert main([str(sweep)]) == 0
    server.user = "you"
    assert main([str(sweep)]) == 0
    assert [saved["entityName"] for saved in server.saved] == ["me", "you"]
    assert "id" not in server.saved[1]


def test_what_was_saved_elsewhere_is_not_kept_for_another_team(make_sweep, server, monkeypatch):
    sweep = make_sweep(POINTS)
    assert main([str(sweep)]) == 0
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main([str(sweep)]) == 0
    assert (_view(sweep)["entity"], _view(sweep)["view"]["id"]) == ("me", "view-1")
    assert main([str(sweep), "--entity", "team"]) == 0
    assert (_view(sweep)["entity"], _view(sweep)["view"]) == ("team", None)


def test_a_refusal_is_told_and_the_view_is_kept(make_sweep, server, capsys):
    server.refusal = "project is read-only"
    sweep = make_sweep(POINTS)
    assert main([str(sweep)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "project is read-only" in err
    assert f"It is in {sweep}/wandb_workspace.json; send it by `python -m lmxexp.dashboard {sweep}`" in err
    assert _view(sweep)["view"] is None


def test_a_failure_does_not_lose_where_it_was_saved(make_sweep, server):
    sweep = make_sweep(POINTS)
    assert main([str(sweep)]) == 0
    server.refusal = "later"
    assert main([str(sweep)]) == 1
    server.refusal = None
    assert main([str(sweep)]) == 0
    assert server.saved[1]["id"] == "view-1"


def test_a_server_that_never_answers_is_not_waited_for(make_sweep, server):
    server.silent.set()
    sweep = make_sweep(POINTS)
    began = time.monotonic()
    done = _run(sweep, timeout_s=1.5)
    assert time.monotonic() - began < 15
    assert done.returncode == 1
    assert "no answer within 1.5 s" in done.stderr
    assert _view(sweep)["view"] is None


def test_without_the_extra_one_line_says_what_to_install(make_sweep, no_account, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    sweep = make_sweep(POINTS)
    assert main([str(sweep)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'lmxexp[dashboard]'" in line
    assert not (sweep / "wandb_workspace.json").exists()


def test_a_mistake_is_one_message(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert (
        err
        == f"lmxexp: error: {tmp_path} has no sweep.json: give the directory of a sweep, such as outputs/sweeps/NAME\n"
    )
