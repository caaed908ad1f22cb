"""Runs that are trained together: within memory, out of it, and after a kill."""

import pytest

import lmxexp
from lmxexp.population import train
from lmxexp.population.step import PopulationStep
from lmxexp.population.train import Member, align, together
from lmxexp.run import run_steps
from lmxexp.train import memory
from lmxexp.train.trainer import Trainer
from tests.end_to_end.processes import small
from tests.population.close import assert_run_as_alone

SHORT = ["train.n_micro=1", "model.n_layers=1", "train.steps=8"]
OWN = ["seed=1", "seed=2", "optim.learning_rate=1e-2", "seed=4"]


class Nowhere:
    """The runs print where the test does."""

    def suspend(self):
        pass

    resume = suspend


@pytest.fixture
def text(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def wait(text, tmp_path):
    """Makes members at their first step, in directories of their own."""

    def wait(*overrides):
        members = []
        for i, own in enumerate(OWN):
            steps = run_steps(lmxexp.compose(small(text, *SHORT, own, *overrides)), tmp_path / str(i))
            members.append(Member(steps, Nowhere()))
            members[-1].begin()
        return members

    return wait


@pytest.fixture
def waiting(wait):
    return wait()


@pytest.fixture
def as_alone(text, tmp_path):
    """Asserts that every run is what it is by itself."""

    def check():
        for i, own in enumerate(OWN):
            lmxexp.run(lmxexp.compose(small(text, *SHORT, own)), tmp_path / f"alone_{i}")
            assert_run_as_alone(tmp_path / f"alone_{i}", tmp_path / str(i))

    return check


@pytest.fixture
def calls(monkeypatch):
    """How many members each step had. ``fail(size, after)``: larger ones run out of memory after so many steps."""
    sizes, limit = [], {}
    step = PopulationStep.__call__

    def call(self, batches):
        if self.size > limit.get("size", 99) and len(sizes) >= limit["after"]:
            raise limit["error"]
        sizes.append(self.size)
        return step(self, batches)

    def fail(size, after, error=None):
        error = error or RuntimeError("[malloc] Unable to allocate 1 bytes.")
        limit.update(size=size, after=after, error=error)

    monkeypatch.setattr(PopulationStep, "__call__", call)
    return sizes, fail


def test_all_in_one(waiting, calls, as_alone):
    sizes, _ = calls
    assert together(waiting) is None
    assert [m.result.status for m in waiting] == ["ok"] * 4
    assert sizes == [4] * 8
    as_alone()


@pytest.mark.parametrize("after", [0, 5])
def test_out_of_memory_they_go_on_in_halves(waiting, calls, as_alone, after, capsys):
    sizes, fail = calls
    fail(2, after)
    assert together(waiting) is None
    assert [m.result.status for m in waiting] == ["ok"] * 4
    assert sizes == [4] * after + 2 * [2] * (8 - after)
    assert "out of memory: 4 points go on in two halves" in capsys.readouterr().err
    as_alone()


def test_halves_of_halves(waiting, calls, as_alone):
    sizes, fail = calls
    fail(1, 3)
    assert together(waiting) is None
    assert sizes == [4] * 3 + 4 * [1] * 5
    as_alone()


def test_as_many_as_fit_by_the_estimate(waiting, calls, as_alone, capsys, monkeypatch):
    sizes, _ = calls
    peaks = []
    estimate = memory.estimate
    monkeypatch.setattr(memory, "estimate", lambda *a, **k: peaks.append(estimate(*a, **k)) or peaks[-1])
    train._size_within(1.0, waiting[0].trainer)
    gb = (peaks[0].peak + 2 * (peaks[0].weights + peaks[0].optimizer)) / 1e9
    assert together(waiting, 3.5 * gb) is None
    assert sizes == [3] * 8 + [1] * 8
    assert "4 points in steps of 3, for" in capsys.readouterr().err
    as_alone()


def test_too_little_memory_for_one_is_one(waiting):
    assert train._size_within(1e-9, waiting[0].trainer) == (1, "for 1e-09 GB of memory")


def test_no_more_logits_than_mlx_can_index(waiting, monkeypatch):
    """The members' are one array."""
    trainer = waiting[0].trainer
    settings = trainer.settings
    of_one = settings.batch_size // settings.parts * settings.seq_len * trainer.model.vocab_size
    why = "as their logits are one array, of at most 2,147,483,647 numbers"
    assert train._size_within(1e6, trainer) == ((2**31 - 1) // of_one, why)
    monkeypatch.setattr(train, "LARGEST", of_one - 1)
    assert train._size_within(1e6, trainer)[0] == 1


@pytest.mark.parametrize("end", [2, 6])
def test_one_that_begins_again_goes_on_by_itself(wait, calls, text, tmp_path, monkeypatch, end):
    """After a step that took too much: before its first checkpoint, and after it."""
    after_step = Trainer._after_step

    def limited(trainer, scalars):
        after_step(trainer, scalars)
        if (trainer.step, trainer.settings.parts, trainer.run_dir.name) == (end, 1, "1"):
            raise memory.MemoryLimitError("peak memory 2 GB is above the limit of 1 GB")

    monkeypatch.setattr(Trainer, "_after_step", limited)
    sizes, _ = calls
    members = wait("train.n_micro=auto", "train.checkpoint_every=4")
    assert together(members) is None
    assert [m.result.status if m.ended else "waits" for m in members] == ["ok", "waits", "ok", "ok"]
    assert sizes == [4] * 8
    members[1].alone()
    assert members[1].result.status == "ok"
    monkeypatch.undo()
    for i, own in enumerate(OWN):
        whole = ["train.n_micro=1", "train.checkpoint_every=4", own]
        parts = ["train.n_micro=2", *whole[1:]]
        directory = tmp_path / f"alone_{i}"
        if i == 1 and end == 6:  # four steps of the whole, and from there in two parts
            cfg = lmxexp.compose(small(text, *SHORT, *whole))
            lmxexp.run(cfg, directory, until=4)
            cfg = lmxexp.compose(small(text, *SHORT, *parts))
            cfg.resume = str(directory)
            lmxexp.run(cfg)
        else:
            lmxexp.run(lmxexp.compose(small(text, *SHORT, *(parts if i == 1 else whole))), directory)
        assert_run_as_alone(directory, tmp_path / str(i))


def test_an_error_at_the_first_step_leaves_them_waiting(waiting, calls, as_alone):
    _, fail = calls
    fail(0, 0, ValueError("no such kernel"))
    assert together(waiting) == "ValueError: no such kernel"
    for member in waiting:
        member.alone()
    as_alone()


def test_an_error_later_fails_each_of_them_with_a_record(waiting, calls, tmp_path):
    _, fail = calls
    fail(0, 5, ValueError("no such kernel"))
    with pytest.raises(ValueError, match="no such kernel"):
        together(waiting)
    for i in range(4):
        assert "no such kernel" in (tmp_path / str(i) / "summary.json").read_text()


def test_ctrl_c_twice_is_no_failure_of_one_alone(waiting, calls, tmp_path):
    _, fail = calls
    fail(0, 5, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        together(waiting)
    assert all("KeyboardInterrupt" in (tmp_path / str(i) / "summary.json").read_text() for i in range(4))


def test_a_signal_stops_all_with_a_checkpoint_and_they_go_on(waiting, text, tmp_path, as_alone, monkeypatch):
    after_step = train.Population.hand_out

    def hand_out(self, *args):
        after_step(self, *args)
        if self._trainers[0].step == 6:
            for trainer in self._trainers:
                trainer.signals.received = 15

    with monkeypatch.context() as patch:
        patch.setattr(train.Population, "hand_out", hand_out)
        assert together(waiting) is None
    assert [m.result.status for m in waiting] == ["stopped"] * 4
    again = []
    for i, own in enumerate(OWN):
        cfg = lmxexp.compose(small(text, *SHORT, own))
        cfg.resume = str(tmp_path / str(i))
        again.append(Member(run_steps(cfg), Nowhere()))
        again[-1].begin()
    assert {m.trainer.step for m in again} == {7}, "the step that was under way is done"
    assert together(again) is None
    as_alone()


@pytest.fixture
def checkpoints(tmp_path):
    """``checkpoints([3, 6], [3])``: a directory for each run, with its steps."""

    def make(*runs):
        directories = [tmp_path / str(i) for i in range(len(runs))]
        for directory, steps in zip(directories, runs, strict=True):
            directory.mkdir()
            for step in steps:
                (directory / f"step_{step:08d}").mkdir()
                (directory / f"step_{step:08d}" / "state.json").touch()
        return directories

    return make


def steps_of(directories):
    return [sorted(int(path.name.removeprefix("step_")) for path in d.glob("*")) for d in directories]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([[3, 6], [3, 6], [3]], [[3], [3], [3]]),  # killed while the third wrote
        ([[3, 6, 9], [3, 6]], [[3, 6], [3, 6]]),
        ([[3, 6], [3, 6]], [[3, 6], [3, 6]]),
        ([[3], []], [[3], []]),  # before its first, or of a later command
        ([[3, 6], [9]], [[3, 6], [9]]),  # no step that both have
        ([[3], [6], [9]], [[3], [6], [9]]),
        ([[3, 9], [3, 6], [3]], [[3, 9], [3, 6], [3]]),  # never trained together
    ],
)
def test_those_ahead_go_back_to_the_step_that_all_have(checkpoints, before, after):
    directories = checkpoints(*before)
    align(directories)
    assert steps_of(directories) == after
