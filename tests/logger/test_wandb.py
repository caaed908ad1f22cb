"""What the W&B logger does in one process, read back from the files of real offline runs; and, with a stand-in for the
wandb package, what it asks of a server."""

from __future__ import annotations

import html
import logging
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmxexp.interfaces import ConfigError
from lmxexp.logger import wandb as wandb_logger
from lmxexp.logger.jsonl import Jsonl
from lmxexp.logger.loggers import Loggers
from lmxexp.logger.wandb import Wandb
from lmxexp.logger.wandb_file import read_wandb_file


def _wandb(**changes: Any) -> Wandb:
    values: dict[str, Any] = {"project": "lmxexp-test", "entity": None, "group": None, "job_type": None, "mode": "auto"}
    return Wandb(**({**values, "init_timeout": 5.0, "finish_timeout": 5.0} | changes))


def _files(run_dir: Path):
    import wandb

    wandb.teardown()  # a run's file is complete a moment after finish; this waits for it
    return [read_wandb_file(path) for path in sorted(run_dir.glob("wandb/*/*.wandb"))]


def _metrics(step: int) -> dict[str, float]:
    return {"tokens": step * 64.0, "train/loss": 1 / (step + 1), "perf/mfu": math.sqrt(step)}


def _ours(row: dict[str, Any]) -> dict[str, float]:
    return {key: row[key] for key in _metrics(0)}


@pytest.fixture
def offline(wandb_env):
    yield
    import wandb

    wandb.teardown()


@pytest.mark.usefixtures("offline")
def test_what_a_run_leaves_is_in_its_file(make_info, capfd):
    info = make_info(tags=["a", "b"], group="sweep-1")
    logger = _wandb()
    logger.start(info)
    for step in range(1, 6):
        logger.log(_metrics(step) | ({"eval/loss": 3.0 - abs(step - 3)} if step > 1 else {}), step=step)
    logger.text("sample", "a <b>\n  c", step=5)
    logger.finish("ok", {"status": "ok", "eval/loss": 1.5, "params": 1234, "best": {"step": 3}})

    (file,) = _files(info.run_dir)
    assert file.run["run_id"] == "abc123"
    assert file.run["project"] == "lmxexp-test"
    assert file.run["group"] == "sweep-1"
    assert file.run["name"] == "llama-gqa"
    assert file.run["tags"] == ["a", "b"]
    assert file.config["train"] == info.config["train"]
    assert file.run["job_type"] == "run"
    assert file.config["choices"] == {"attention": "gqa", "model": "llama"}
    assert file.config["choice/attention"] == "gqa"
    assert file.config["choice/model"] == "llama"
    assert file.config["record"] == info.record
    assert [row["_step"] for row in file.history] == [1, 2, 3, 4, 5]
    assert [_ours(row) for row in file.history] == [_metrics(step) for step in range(1, 6)]
    assert {k: file.metrics[k] for k in ("train/*", "eval/*", "perf/*", "mem/*", "eval/loss")} == dict.fromkeys(
        ("train/*", "eval/*", "perf/*", "mem/*", "eval/loss"), "tokens"
    )
    assert file.summary["eval/loss"] == {"min": 1.0}
    assert file.summary["summary/eval/loss"] == 1.5
    assert file.summary["summary/params"] == 1234
    assert file.summary["summary/status"] == "ok"
    assert file.exit_code == 0

    (page,) = info.run_dir.glob("wandb/*/files/media/html/*.html")
    assert html.unescape(page.read_text().split(">", 1)[1]).startswith("a <b>\n  c")

    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert "offline" in line
    assert f"wandb sync {info.run_dir}/wandb" in line


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("status", "exit_code"), [("ok", 0), ("stopped", 0), ("paused", 0), ("pruned", 0), ("diverged", 1), ("failed", 1)]
)
def test_exit_code(status, exit_code, make_info):
    info = make_info()
    logger = _wandb(mode="offline")
    logger.start(info)
    logger.finish(status, {})
    assert [file.exit_code for file in _files(info.run_dir)] == [exit_code]


@pytest.mark.usefixtures("offline")
def test_two_runs_in_one_process_are_two_runs(make_info):
    infos = [make_info("one", run_id="one1"), make_info("two", run_id="two2", name="second")]
    for number, info in enumerate(infos):
        logger = _wandb(mode="offline", group=f"group{number}")
        logger.start(info)
        logger.log(_metrics(number), step=number)
        # The first is left as an exception in the training would leave it.
        if number == 1:
            logger.finish("ok", {})
    for number, info in enumerate(infos):
        (file,) = _files(info.run_dir)
        assert (file.run["run_id"], file.run["group"]) == (info.run_id, f"group{number}")
        assert [_ours(row) for row in file.history] == [_metrics(number)]


@pytest.mark.usefixtures("offline")
def test_a_text_and_the_metrics_of_its_step_are_one_row_whichever_comes_first(make_info):
    info = make_info()
    logger = _wandb(mode="offline")
    logger.start(info)
    logger.text("sample", "before the metrics", step=1)
    logger.log(_metrics(1), step=1)
    logger.log(_metrics(2), step=2)
    logger.text("sample", "after them", step=2)
    logger.text("sample", "without any", step=3)
    logger.log(_metrics(4), step=4)
    logger.text("sample", "at the end", step=5)
    logger.finish("ok", {})
    (file,) = _files(info.run_dir)
    assert [row["_step"] for row in file.history] == [1, 2, 3, 4, 5]
    assert ["tokens" in row for row in file.history] == [True, True, False, True, False]
    assert ["sample.path" in row for row in file.history] == [True, True, True, False, True]


@pytest.mark.usefixtures("offline")
def test_resuming_sends_what_was_lost_and_nothing_twice(make_info):
    info = make_info()
    jsonl, logger = Jsonl(), _wandb(mode="offline")
    for each in (jsonl, logger):
        each.start(info)
    for step in range(2, 9, 2):
        jsonl.log(_metrics(step), step=step)
        if step <= 4:  # as if steps 6 and 8 had been in a buffer of a killed process
            logger.log(_metrics(step), step=step)
    logger.finish("failed", {})
    jsonl.finish("failed", {})

    for resume_step in (6, 3):  # W&B has too little; then a checkpoint from before what W&B has
        info = make_info(resume_step=resume_step)
        jsonl, logger = Jsonl(), _wandb(mode="offline")
        for each in (jsonl, logger):
            each.start(info)
            for step in range(2, 11, 2):
                if step > resume_step:
                    each.log(_metrics(step), step=step)
            each.text("sample", "x", step=2)
            each.finish("ok", {})

    rows = [row for file in _files(info.run_dir) for row in file.history]
    assert [row["_step"] for row in rows] == [2, 4, 6, 8, 10]
    assert [_ours(row) for row in rows] == [_metrics(step) for step in range(2, 11, 2)]


@pytest.mark.usefixtures("offline")
def test_without_metrics_jsonl_a_resumed_run_goes_on(make_info):
    logger = _wandb(mode="offline")
    logger.start(make_info(resume_step=6))
    logger.log(_metrics(8), step=8)
    logger.finish("ok", {})
    assert [row["_step"] for row in _files(make_info().run_dir)[0].history] == [8]


# --- with a stand-in for the package ---------------------------------------------------------------------------------


class FakeWandb(SimpleNamespace):
    """As much of the package as the logger calls, with a server that has ``starting_step`` steps."""

    def __init__(self, logged_in: bool = True, starting_step: int = 0):
        super().__init__(run=None, inits=[], rows=[], torn_down=0)
        self.logged_in, self.starting_step = logged_in, starting_step
        self.Settings = lambda **settings: settings
        self.Html = lambda page, inject: page

    def setup(self, settings):
        assert settings["silent"]

    def login(self, prompt, verify):
        assert not prompt
        assert not verify
        return self.logged_in

    def init(self, **arguments):
        self.inits.append(arguments)
        return SimpleNamespace(
            offline=arguments["mode"] == "offline",
            starting_step=self.starting_step,
            url="https://example.org/run",
            define_metric=lambda *args, **options: None,
            log=lambda row, step: self.rows.append((step, row)),
            summary={},
            finish=lambda exit_code: None,
        )

    def teardown(self, exit_code=0):
        self.torn_down += 1


@pytest.fixture
def fake(wandb_env, monkeypatch) -> FakeWandb:
    package = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", package)
    return package


@pytest.mark.parametrize(
    ("mode", "variable", "logged_in", "expected"),
    [
        ("auto", None, True, "online"),
        ("auto", None, False, "offline"),
        ("auto", "offline", True, "offline"),
        ("auto", "dryrun", True, "offline"),
        ("auto", "disabled", True, None),
        ("auto", "online", True, "online"),
        ("auto", "online", False, "offline"),
        ("online", "offline", True, "online"),
        ("online", None, False, "offline"),
        ("offline", "online", True, "offline"),
        ("disabled", "online", True, None),
    ],
)
def test_mode(mode, variable, logged_in, expected, fake, make_info, monkeypatch, caplog):
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    fake.logged_in = logged_in
    logger = _wandb(mode=mode)
    logger.start(make_info())
    logger.log(_metrics(1), step=1)
    logger.text("sample", "x", step=1)
    logger.finish("ok", {})
    assert [arguments["mode"] for arguments in fake.inits] == ([expected] if expected else [])
    wanted = variable if mode == "auto" else mode
    assert bool(caplog.records) == (wanted == "online" and not logged_in), "who asked for online is told otherwise"


def test_a_wrong_variable_is_a_clear_error(fake, make_info, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "onlien")
    with pytest.raises(ConfigError, match="WANDB_MODE=onlien is none of online"):
        _wandb().start(make_info())


@pytest.mark.parametrize("key", ["init_timeout", "finish_timeout"])
def test_timeouts_are_positive(key):
    with pytest.raises(ConfigError, match=f"logger.wandb.{key}=0"):
        _wandb(**{key: 0})


def test_init_is_given_what_keeps_a_run_one_run(fake, make_info):
    _wandb(entity="team", group="mine").start(make_info(group="sweep", name="n" * 200))
    (arguments,) = fake.inits
    assert (arguments["id"], arguments["resume"], arguments["reinit"]) == ("abc123", "allow", "finish_previous")
    assert (arguments["entity"], arguments["group"], len(arguments["name"])) == ("team", "mine", 128)


@pytest.mark.parametrize(
    ("setting", "of_sweep", "expected"),
    [(None, "run", "run"), (None, "grid", "grid"), ("mine", "grid", "mine"), ("mine", "run", "mine")],
)
def test_job_type(setting, of_sweep, expected, fake, make_info):
    _wandb(job_type=setting).start(make_info(job_type=of_sweep))
    assert [arguments["job_type"] for arguments in fake.inits] == [expected]


@pytest.mark.parametrize(("at_server", "resume_step"), [(5, 8), (0, 8), (7, 4), (9, 8)])
def test_the_server_says_what_it_has(at_server, resume_step, fake, make_info):
    """Steps 1 to ``at_server`` are there; the local file goes to 8; the run goes on to 10."""
    jsonl = Jsonl()
    jsonl.start(make_info())
    for step in range(1, 9):
        jsonl.log(_metrics(step), step=step)
    jsonl.finish("failed", {})

    fake.starting_step = at_server + 1 if at_server else 0
    logger = _wandb()
    logger.start(make_info(resume_step=resume_step))
    for step in range(resume_step + 1, 11):
        logger.log(_metrics(step), step=step)
    assert fake.rows == [(step, _metrics(step)) for step in range(at_server + 1, 11)]


def test_a_log_that_raises_switches_it_off(fake, make_info, caplog):
    loggers = Loggers({"wandb": _wandb()})
    loggers.start(make_info())

    def fail(row, step):
        raise ConnectionResetError("Connection lost")

    loggers._active["wandb"]._run.log = fail
    for step in range(3):
        loggers.log(_metrics(step), step=step)
    loggers.finish("ok", {})
    assert fake.torn_down == 1
    (record,) = caplog.records
    assert "wandb" in record.getMessage()
    assert "Connection lost" in record.getMessage()


@pytest.mark.parametrize("kind", ["hangs", "times out"])
def test_an_upload_that_takes_too_long_is_left(kind, fake, make_info, monkeypatch, caplog):
    monkeypatch.setattr(wandb_logger, "_ABANDON_SECONDS", 0.1)
    logger = _wandb(finish_timeout=0.1)
    logger.start(make_info())

    def finish(exit_code):
        if kind == "times out":
            raise TimeoutError
        import threading

        threading.Event().wait(5)

    logger._run.finish = finish
    with caplog.at_level(logging.WARNING):
        logger.finish("ok", {})
    assert "wandb sync" in caplog.text
