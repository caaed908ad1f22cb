"""Runs that begin again with less at a time when memory did not suffice."""

import gc
import json
import re
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import lmxexp
from lmxexp import device
from lmxexp.data.build import build_source
from lmxexp.loss.cross_entropy import CrossEntropy
from lmxexp.model.build import build_model
from lmxexp.run import run
from lmxexp.train import checkpoint
from lmxexp.train.evaluator import Evaluator
from lmxexp.train.memory import MemoryLimitError, OutOfMemoryError
from lmxexp.train.step import TrainStep
from lmxexp.train.trainer import Trainer
from tests.train.small_text import AUTO, SMALL, write_text

RUN = sys.modules["lmxexp.run"]  # `lmxexp.run` is its function


@pytest.fixture(autouse=True)
def _text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)


def test_of_an_earlier_run_in_the_process_nothing_is_in_memory(tmp_path, monkeypatch):
    """Nor in its peak: a compiled step holds itself, until somebody looks for what does."""
    models, alive = [], []
    init = Trainer.__init__

    def noting(self, model, *args, **kwargs):
        alive.append([earlier() is not None for earlier in models])
        models.append(weakref.ref(model))
        init(self, model, *args, **kwargs)

    monkeypatch.setattr(Trainer, "__init__", noting)
    gc.disable()
    try:
        for name in ("one", "two", "three"):
            run(lmxexp.compose(SMALL), tmp_path / name)
    finally:
        gc.enable()
    assert alive == [[], [False], [False, False]]


class TooLarge:
    """Steps in parts of more than ``most`` sequences do not fit, after the first ``after`` steps."""

    def __init__(self):
        self.most, self.after, self.seen = 2, 0, []

    def __call__(self, step, batch):
        rows = batch.inputs.shape[0] // step.n_micro
        self.seen.append((rows, weakref.ref(step.model)))
        if rows > self.most and len(self.seen) > self.after:
            raise RuntimeError("[malloc] Unable to allocate 123 bytes.")
        return CALL(step, batch)

    @property
    def rows(self):
        return [rows for rows, _ in self.seen]


CALL = TrainStep.__call__


@pytest.fixture
def too_large(monkeypatch):
    fake = TooLarge()
    monkeypatch.setattr(TrainStep, "__call__", lambda step, batch: fake(step, batch))
    return fake


def trained(name, *overrides):
    return run(lmxexp.compose([*SMALL, *overrides]), name)


def weights_of(name):
    return checkpoint.read(checkpoint.newest(Path(name) / "checkpoints")).load("model")


def test_it_goes_on_in_smaller_parts(too_large, capsys):
    result = trained("auto", "train.n_micro=auto")
    assert (result.status, result.summary["step"]) == ("ok", 8)
    assert too_large.rows == [8, 4] + [2] * 8
    err = capsys.readouterr().err
    assert "out of memory in step 1 ([malloc] Unable to allocate 123 bytes.)" in err
    assert "With train.n_micro=1 it takes about" in err
    assert "the run goes on with less at a time" in err
    assert "train.n_micro=auto: 4, which takes about" in err
    assert json.loads((result.run_dir / "run.json").read_text())["n_micro"] == 4
    trained("four", "train.n_micro=4")
    for path, want in weights_of("four").items():
        assert mx.array_equal(weights_of("auto")[path], want).item(), path


@pytest.fixture
def took_too_much(too_large, monkeypatch):
    """``took_too_much(step)``: that step is computed, and found to have taken too much, until it is in four parts."""
    after_step = Trainer._after_step
    too_large.most = 8

    def at(step):
        def limited(trainer, scalars):
            after_step(trainer, scalars)
            if trainer.step == step and trainer.settings.parts < 4:
                raise MemoryLimitError("peak memory 2 GB is above the limit of 1 GB")

        monkeypatch.setattr(Trainer, "_after_step", limited)

    return at


def losses(name):
    lines = [json.loads(line) for line in (Path(name) / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]


def test_it_goes_on_after_a_step_that_was_computed(too_large, took_too_much):
    """The steps that follow are those of the run that goes on."""
    took_too_much(1)
    result = trained("auto", "train.n_micro=auto")
    assert (result.status, result.summary["step"]) == ("ok", 8)
    assert sorted(set(too_large.rows), reverse=True) == [8, 4, 2]
    assert too_large.rows[-8:] == [2] * 8
    trained("four", "train.n_micro=4")
    for path, want in weights_of("four").items():
        assert mx.array_equal(weights_of("auto")[path], want).item(), path
    assert losses("auto") == losses("four")


def test_a_run_tells_mlx_its_limit_and_takes_it_back(monkeypatch):
    limits = []
    monkeypatch.setattr(device, "limit_memory", limits.append)
    trained("one", "train.memory_limit_gb=0.5", "train.steps=1")
    assert limits == ([None, None] if device.is_gpu() else [pytest.approx(0.45), None])


def test_after_a_later_one_it_goes_on_from_the_newest_checkpoint(too_large, took_too_much):
    took_too_much(5)
    result = trained("auto", "train.n_micro=auto")
    assert (result.status, result.summary["step"]) == ("ok", 8)
    assert [step for step, _ in losses("auto")] == list(range(1, 9))
    assert too_large.rows[-4:] == [2] * 4
    assert too_large.rows.count(2) == 4


def test_it_goes_on_from_the_newest_checkpoint(too_large):
    """The sixth step does not fit."""
    too_large.after, too_large.most = 5, 4
    result = trained("auto", "train.n_micro=auto")
    assert (result.status, result.summary["step"]) == ("ok", 8)
    record = json.loads((result.run_dir / "run.json").read_text())
    assert [again["step"] for again in record["resumed"]] == [4]
    lines = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 9))
    assert too_large.rows == [8] * 6 + [4] * 4


@pytest.mark.parametrize("computed", [False, True])
def test_the_first_model_is_gone_before_the_second_is_there(too_large, took_too_much, monkeypatch, computed):
    if computed:
        took_too_much(1)
    else:
        too_large.most = 2
    alive = []
    make = RUN.build_model

    def counted(*args, **kwargs):
        gc.collect()
        alive.append(sum(model() is not None for _, model in too_large.seen))
        return make(*args, **kwargs)

    monkeypatch.setattr(RUN, "build_model", counted)
    trained("auto", "train.n_micro=auto")
    assert alive == [0, 0, 0]


def test_a_number_is_not_changed_and_the_ledger_is_told(too_large):
    told = r"train\.n_micro=2 computes .* With train\.n_micro=1 it takes about .* logits"
    with pytest.raises(OutOfMemoryError, match=told):
        trained("one")
    summary = json.loads(Path("one/summary.json").read_text())
    assert summary["status"] == "failed"
    assert "With train.n_micro=1 it takes about" in summary["error"]


def test_nothing_smaller_is_left(too_large):
    too_large.most = 0
    with pytest.raises(OutOfMemoryError, match="choose a smaller model"):
        trained("auto", *AUTO)
    assert too_large.rows == [8, 8, 8, 4, 2, 1]  # the first again with light, then with block


def test_recomputation_is_recorded_and_kept(too_large):
    too_large.most = 8
    first = trained("auto", "train.remat=auto", "train.steps=4")
    path = first.run_dir / "run.json"
    record = json.loads(path.read_text())
    assert record["remat"] == "none"
    path.write_text(json.dumps({**record, "remat": "light"}))
    cfg = lmxexp.compose([*SMALL, "train.remat=auto"])
    cfg.resume = str(first.run_dir)
    run(cfg)  # where everything would fit
    assert json.loads(path.read_text())["remat"] == "light"
    assert [model().remat for _, model in too_large.seen if model() is not None][-1:] in ([], ["light"])


def test_an_error_while_a_step_is_traced_is_told_as_it_is(monkeypatch):
    """What stands in model and random state then is no arrays; the ledger must not stumble over that."""

    def broken(*_):
        raise RuntimeError("[malloc] Unable to allocate 9 bytes.")

    monkeypatch.setattr(TrainStep, "_update", broken)
    with pytest.raises(OutOfMemoryError, match=r"out of memory in step 1 \(\[malloc\] Unable to allocate 9 bytes\.\)"):
        trained("one")


def test_resumed_it_has_the_parts_that_it_began_with(too_large):
    first = trained("auto", "train.n_micro=auto", "train.steps=4")
    cfg = lmxexp.compose([*SMALL, "train.n_micro=auto"])
    cfg.resume = str(first.run_dir)
    run(cfg)  # where everything would fit
    assert json.loads((first.run_dir / "run.json").read_text())["n_micro"] == 4


WITH_LITTLE_MEMORY = """
import os, resource, sys
import lmxexp
import mlx.core as mx
from lmxexp.run import run

mx.eval(mx.random.normal((8, 8)) @ mx.random.normal((8, 8)))  # its threads take room as well
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = taken + int(float(sys.argv[1]) * 1e9)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
cfg = lmxexp.compose(sys.argv[3:])
cfg.resume = sys.argv[2] if os.path.exists(sys.argv[2]) else None
print(run(cfg, sys.argv[2]).status)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or device.is_gpu(), reason="limits the memory of a Linux CPU")
def test_memory_that_is_really_limited(tmp_path):
    """A CPU's process ends without an error when memory runs out: what is auto has to fit before."""
    (tmp_path / "limited.py").write_text(WITH_LITTLE_MEMORY)

    def process(name, *overrides):
        sizes = "size=tiny", "model.n_layers=2", "train.batch_size=96", "train.seq_len=256", "train.steps=1"
        line = [sys.executable, "limited.py", "0.8", name, *SMALL[:2], *sizes, "data.max_eval_tokens=500"]
        line += ["logger=[jsonl]", "callback=[checkpoint]", *overrides]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    auto = process("auto", "train.n_micro=auto")
    assert auto.stdout.strip() == "ok", auto.stderr
    assert re.search(r"train\.n_micro=auto: [2346], which takes about", auto.stderr)
    one = process("one")
    assert one.returncode == -signal.SIGSEGV, one.stderr
    assert "a step takes about" in one.stderr
    assert "the process ends without another word: train.n_micro=auto" in one.stderr
    again = process("one", "train.n_micro=auto")
    assert again.stdout.strip() == "ok", again.stderr
    assert json.loads((tmp_path / "one/run.json").read_text())["n_micro"] > 1


def test_evaluation_is_in_parts_too():
    cfg = lmxexp.compose(SMALL)
    model = build_model(cfg, vocab_size=256)
    source = build_source(cfg)
    rows = []

    class Seen(CrossEntropy):
        def __call__(self, model, batch):
            rows.append(batch.inputs.shape[0])
            return super().__call__(model, batch)

    whole, parts = (Evaluator(model, Seen(), source, n_micro=n)() for n in (1, 4))
    assert rows == [8, 2]
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-6, err_msg=name)
