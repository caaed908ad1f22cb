"""What becomes of points that could not say themselves how they ended, and of two sweeps at once."""

import json
import math
from contextlib import contextmanager

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from lmxexp.interfaces import ConfigError
from lmxexp.sweep import sweeper
from lmxexp.sweep.ledger import Entry, Outcome, PointProcessError, read_outcome, write_outcome
from lmxexp.sweep.sweeper import GridSweeper, RandomSweeper, _conclude, _remove_if_empty, reached
from tests.sweep.arms import ends, grid, halving, planned

ENTRY = Entry(0, "0_seed=1", "id0", ["seed=1"], "")
RUNNING = Outcome("id0", "running", overrides=["seed=1"], attempt=2, rungs={"3": 1.0})
KILLED = PointProcessError("its process was killed by signal 9 (SIGKILL): out of memory, perhaps")


def failed(error):
    return JobReturn(status=JobStatus.FAILED, _return_value=error)


DONE = JobReturn(status=JobStatus.COMPLETED, _return_value=1.0)


@pytest.mark.parametrize(
    ("before", "returned", "error", "end"),
    [
        # It ran when it was killed.
        (RUNNING, failed(KILLED), None, ("killed", str(KILLED), 2)),
        (RUNNING, None, RuntimeError("a worker\ndied"), ("killed", "RuntimeError: a worker died", 2)),
        (RUNNING, DONE, None, ("killed", "its process ended without a word", 2)),
        # It had not begun.
        (None, failed(KILLED), None, ("failed", str(KILLED), 2)),
        (None, failed(KeyError("x")), None, ("failed", "KeyError: 'x'", 2)),
        # It said itself how it ended.
        (Outcome("id0", "failed", error="no luck", attempt=2), failed(KILLED), None, ("failed", "no luck", 2)),
        (Outcome("id0", "ok", 1.5, attempt=2), None, RuntimeError("another died"), ("ok", None, 2)),
        # Another one's process died, and this one was not begun: it begins with the next launch.
        (None, None, RuntimeError("another died"), None),
        (Outcome("id0", "running", attempt=1), None, RuntimeError("another died"), ("running", None, 1)),
    ],
)
def test_the_end_of_a_point_that_could_not_say_it(tmp_path, before, returned, error, end):
    if before is not None:
        write_outcome(tmp_path, before)
    _conclude(ENTRY, tmp_path, 1, returned, error)
    outcome = read_outcome(tmp_path)
    assert (outcome and (outcome.status, outcome.error, outcome.attempt)) == end
    if outcome is not None and outcome.status in ("killed", "failed"):
        assert outcome.identity == "id0"
        assert math.isinf(outcome.score)
    if outcome is not None and outcome.status == "killed":
        assert (outcome.exit_code, outcome.overrides, outcome.rungs) == (1, ["seed=1"], {"3": 1.0})


@pytest.mark.parametrize(
    ("outcome", "until", "expected"),
    [
        (None, None, False),
        (Outcome("id0", "ok"), None, True),
        (Outcome("id0", "ok"), 5, True),
        (Outcome("id0", "diverged"), None, True),
        (Outcome("id0", "pruned", step=5), 9, True),
        (Outcome("other", "ok"), None, False),
        (Outcome("id0", "paused", step=5), None, False),
        (Outcome("id0", "paused", step=5), 6, False),
        (Outcome("id0", "paused", step=5), 5, True),
        (Outcome("id0", "paused", step=9), 5, True),
        *((Outcome("id0", status, step=9), 5, False) for status in ("failed", "killed", "stopped", "running")),
    ],
)
def test_which_points_have_their_result(tmp_path, outcome, until, expected):
    [point] = planned(1)
    if outcome is not None:
        write_outcome(tmp_path / point.entry.dir, outcome)
    assert reached(point, tmp_path, until) is expected


def test_what_has_its_result_does_not_run_again(tmp_path):
    points = planned(5)
    made, training = grid(tmp_path, lambda arm, seed, step: math.inf if arm == 3 else 1.0)
    made.run(points[:2], tmp_path)
    made.run(points, tmp_path)
    made.run(points, tmp_path)
    assert training.launched == [[(0, 0, None), (1, 0, None)], [(2, 0, None), (3, 0, None), (4, 0, None)]]


def test_batches(tmp_path):
    made, training = grid(tmp_path, lambda arm, seed, step: 1.0)
    made.max_batch_size = 2
    made.run(planned(5), tmp_path)
    assert [len(batch) for batch in training.launched] == [2, 2, 1]


def test_a_launcher_that_gives_up_when_a_point_is_killed_is_started_again(tmp_path):
    """As joblib's, which loses the points that wait."""
    points = planned(4)
    made, training = grid(tmp_path, lambda arm, seed, step: 1.0)
    launch = training.launch

    def one_dies(lines, initial_job_idx):
        first = launch(lines[:1], 0)
        if len(training.launched) == 1:
            write_outcome(tmp_path / points[1].entry.dir, Outcome("id1", "running"))
            raise RuntimeError("a worker died")
        return first + launch(lines[1:], 0)

    training.launch = one_dies
    made.run(points, tmp_path)
    assert [status for status, _, _ in ends(points, tmp_path)] == ["ok", "killed", "ok", "ok"]


def test_a_launcher_that_starts_nothing_is_an_error(tmp_path):
    made, training = grid(tmp_path, lambda arm, seed, step: 1.0)

    def launch(lines, initial_job_idx):
        raise RuntimeError("no such queue")

    training.launch = launch
    with pytest.raises(RuntimeError, match="no such queue"):
        made.run(planned(2), tmp_path)


def test_a_point_that_does_not_begin_is_not_tried_for_ever(tmp_path):
    """Another process is at work on it, say."""
    made, training = grid(tmp_path, lambda arm, seed, step: 1.0)
    launched = []
    training.launch = lambda lines, initial_job_idx: [launched.append(lines) or DONE for _ in lines]
    made.run(planned(2), tmp_path)
    assert len(launched) == 2


def test_nothing_more_begins_where_a_sweep_stops_at_failures(tmp_path):
    points = planned(3)
    made, training = grid(tmp_path, lambda arm, seed, step: 1.0)
    made.max_batch_size = 1
    launch = training.launch
    training.launch = lambda lines, initial_job_idx: ((tmp_path / "stop").touch(), launch(lines, 0))[1]
    made.run(points, tmp_path)
    assert [status for status, _, _ in ends(points, tmp_path)] == ["ok", "waiting", "waiting"]


# The whole of it, with points planned by hand


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """``swept(sweeper)``: its `sweep`, in the directory ``outputs/s``."""
    directory = tmp_path / "outputs" / "s"

    class Plan:
        match = tune = None

        def __init__(self, composer, book, mode):
            self.mode = mode

        def plan(self, lines):
            if lines == "wrong":
                raise ConfigError("it cannot work")
            return planned(3)

    monkeypatch.setattr(sweeper, "Planner", Plan)

    def sweep(made, lines=()):
        made.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(directory)}}})
        made._composer = None
        made.lines = lambda overrides: lines
        made.sweep([])

    return sweep, directory


def test_a_mistake_leaves_no_directory_behind(swept, tmp_path):
    sweep, directory = swept
    with pytest.raises(ConfigError, match="it cannot work"):
        sweep(grid(directory, lambda *at: 1.0)[0], "wrong")
    assert list(tmp_path.iterdir()) == []
    sweep(grid(directory, lambda *at: 1.0)[0])
    for run_dir in directory.glob("*_*"):  # only its plan is left
        (run_dir / "outcome.json").unlink()
        run_dir.rmdir()
    before = sorted(directory.rglob("*"))
    with pytest.raises(ConfigError, match="it cannot work"):
        sweep(grid(directory, lambda *at: 1.0)[0], "wrong")
    assert sorted(directory.rglob("*")) == before


def test_a_directory_with_anything_in_it_stays(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / ".lock").touch()
    (tmp_path / "a" / "sweep.json").touch()
    _remove_if_empty([inner, tmp_path / "a", tmp_path])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "sweep.json"]


def test_who_comes_second_leaves_the_first_ones_directory_alone(swept, monkeypatch):
    """Both began at the same time, and the first one plans still: there is its lock, and nothing else."""
    sweep, directory = swept

    @contextmanager
    def locked(path, **kwargs):
        path.parent.mkdir(parents=True)
        path.touch()
        raise ConfigError("in use by another process")
        yield

    monkeypatch.setattr(sweeper, "locked", locked)
    with pytest.raises(ConfigError, match="in use"):
        sweep(grid(directory, lambda *at: 1.0)[0])
    assert (directory / ".lock").exists()


def test_what_successive_halving_has_stopped_a_grid_brings_to_its_end(swept):
    sweep, directory = swept
    loss = lambda arm, seed, step: arm + 1.0
    sweep(halving(directory, loss)[0])
    assert [status for status, _, _ in ends(planned(3), directory)] == ["ok", "pruned", "pruned"]
    written = {file: file.stat().st_mtime_ns for file in directory.rglob("outcome.json")}
    again, training = halving(directory, loss)
    sweep(again)
    assert training.launched == []
    assert {file: file.stat().st_mtime_ns for file in written} == written
    whole, training = grid(directory, loss)
    sweep(whole)
    assert [end[:2] for end in ends(planned(3), directory)] == [("ok", 27)] * 3
    assert training.trained == 2 * 27 - 2 * 3, "they go on from where they were stopped"


def test_a_sweep_that_stopped_at_a_failure_goes_on_when_it_is_given_again(swept):
    sweep, directory = swept
    directory.mkdir(parents=True)
    (directory / "stop").touch()
    sweep(grid(directory, lambda *at: 1.0)[0])
    assert [status for status, _, _ in ends(planned(3), directory)] == ["ok"] * 3


def test_what_the_last_command_asked_for_is_on_record(swept):
    sweep, directory = swept
    sweep(grid(directory, lambda *at: 1.0)[0])
    assert json.loads((directory / "sweep.json").read_text())["asked"] == [0, 1, 2]


def test_settings_that_cannot_work():
    with pytest.raises(ConfigError, match="max_batch_size=0 must be at least 1, or null"):
        GridSweeper(max_batch_size=0)
    with pytest.raises(ConfigError, match="n_trials=0 must be at least 1"):
        RandomSweeper(n_trials=0).lines([])
