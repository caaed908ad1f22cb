from __future__ import annotations

import pytest

from lmxexp.interfaces import ConfigError
from lmxexp.logger.jsonl import Jsonl, read_metrics
from lmxexp.logger.loggers import Loggers


class Recorder:
    """Keeps its calls, and raises in the one named."""

    def __init__(self, fails_in="", error=None, calls=None, work=lambda: None):
        self.calls = [] if calls is None else calls
        self.fails_in, self.error, self.work = fails_in, error or RuntimeError("no\nluck"), work
        self.abandoned = 0

    def _call(self, name):
        self.work()
        self.calls.append((self, name))
        if name == self.fails_in:
            raise self.error

    def start(self, info):
        self._call("start")

    def log(self, metrics, *, step):
        self._call("log")

    def text(self, name, value, *, step):
        self._call("text")

    def finish(self, status, summary):
        self._call("finish")

    def abandon(self):
        self.abandoned += 1
        raise RuntimeError("abandon may fail too")

    def names(self):
        return [name for logger, name in self.calls if logger is self]


def _run(loggers, info):
    loggers.start(info)
    for step in (1, 2):
        loggers.log({"tokens": 1.0}, step=step)
        loggers.text("sample", "x", step=step)
    loggers.finish("ok", {})


ALL = ["start", "log", "text", "log", "text", "finish"]


def test_calls_in_order(make_info):
    calls = []
    one, two = Recorder(calls=calls), Recorder(calls=calls)
    _run(Loggers({"one": one, "two": two}), make_info())
    assert calls == [(logger, name) for name in ALL for logger in (one, two)]


@pytest.mark.parametrize("where", ["start", "log", "text", "finish"])
def test_one_that_fails_is_switched_off_with_one_line(where, make_info, caplog):
    bad, good = Recorder(fails_in=where), Recorder()
    _run(Loggers({"bad": bad, "good": good}), make_info())
    assert good.names() == ALL
    assert bad.names() == ALL[: ALL.index(where) + 1]
    assert bad.abandoned == 1
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "bad" in record.getMessage()
    assert "RuntimeError: no luck" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_the_truth_is_not_given_up(make_info, caplog):
    info = make_info()
    (info.run_dir / "metrics.jsonl").symlink_to("/dev/full")
    loggers = Loggers({"jsonl": Jsonl(), "other": Recorder()})
    loggers.start(info)
    with pytest.raises(OSError, match="free space"):
        loggers.log({"tokens": 1.0}, step=1)
    loggers.finish("failed", {})
    assert not caplog.records


def test_a_wrong_setting_stops_the_start_alone(make_info):
    with pytest.raises(ConfigError):
        Loggers({"bad": Recorder("start", ConfigError("x=1 is wrong"))}).start(make_info())
    _run(Loggers({"bad": Recorder("log", ConfigError("x=1 is wrong"))}), make_info())


def test_interrupts_pass(make_info):
    loggers = Loggers({"one": Recorder("log", KeyboardInterrupt())})
    loggers.start(make_info())
    with pytest.raises(KeyboardInterrupt):
        loggers.log({"tokens": 1.0}, step=1)


def test_seconds_are_those_spent_in_all_loggers(make_info, monkeypatch):
    now = 0.0

    def work():
        nonlocal now
        now += 0.25

    monkeypatch.setattr("time.perf_counter", lambda: now)
    loggers = Loggers({"a": Recorder(work=work), "b": Recorder("finish", work=work)})
    _run(loggers, make_info())
    now += 100
    assert loggers.seconds == 2 * len(ALL) * 0.25


def test_metrics_reach_the_file(make_info):
    info = make_info()
    _run(Loggers({"jsonl": Jsonl()}), info)
    assert [row["step"] for row in read_metrics(info.run_dir / "metrics.jsonl")] == [1, 2]
