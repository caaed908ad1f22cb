"""``train.n_micro=auto``: how many parts, and going on in smaller ones when memory did not suffice."""

import dataclasses
import gc
import json
import random
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
from lmxexp.build import build
from lmxexp.data.build import build_source
from lmxexp.interfaces import Batch, ConfigError
from lmxexp.loss.cross_entropy import CrossEntropy
from lmxexp.model.build import build_model
from lmxexp.optim.build import optimizer_of
from lmxexp.run import run
from lmxexp.train import checkpoint
from lmxexp.train.evaluator import Evaluator
from lmxexp.train.fitted import ENOUGH_TOKENS, SPARE, Way, first_fitting, fitted, ways
from lmxexp.train.memory import (
    Ledger,
    MemoryLimitError,
    OutOfMemoryError,
    is_out_of_memory,
)
from lmxexp.train.peak_memory import UNDER_WAY_FACTOR, estimate
from lmxexp.train.step import TrainStep
from lmxexp.train.trainer import Trainer

RUN = sys.modules["lmxexp.run"]  # `lmxexp.run` is its function

SMALL = ["data=text", "data.path=text.txt", "model.d_model=16", "model.n_heads=2", "model.n_kv_heads=1"]
SMALL += ["model.n_layers=1", "train.steps=8", "train.batch_size=8", "train.seq_len=16", "train.log_every=1"]
SMALL += ["train.checkpoint_every=2", "train.eval_every=4", "logger=[jsonl]", "callback=[evaluate,checkpoint]"]


@pytest.fixture(autouse=True)
def _text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("".join(random.Random(0).choices("abcdefgh ", k=6000)))


def ledger_of(*overrides):
    cfg = lmxexp.compose([*SMALL, *overrides])
    model = build_model(cfg, vocab_size=256)
    model.train()
    optimizer = optimizer_of(cfg)
    optimizer.init(model.trainable_parameters())
    settings = build(cfg.train)
    return settings, Ledger(model, optimizer, build(cfg.loss), settings, None)


@pytest.fixture
def _on_a_cpu(monkeypatch):
    """Estimates are those of a CPU: what is told apart by them does not depend on this machine."""
    monkeypatch.setattr(device, "is_gpu", lambda: False)  # by which the backend is told


@pytest.mark.usefixtures("_on_a_cpu")
def test_masks_between_documents_are_in_the_estimate():
    settings, ledger = ledger_of("train.seq_len=256", "model.n_heads=1")
    masked = Ledger(*ledger._args, settings, None, document_mask=True)
    more = masked.of(1, "none").peak - ledger.of(1, "none").peak
    assert more >= 8 * 256 * 256, "a boolean for each two positions of a row"


def test_masks_between_documents_are_in_the_estimate_for_cuda():
    """One for all layers, in the type of queries; scores, beside which it would be nothing, are not there."""
    settings, ledger = ledger_of("train.seq_len=1024", "model.n_heads=1", "model.n_layers=8")
    plain, masked = (
        estimate(
            *ledger._args,
            batch_size=settings.batch_size,
            seq_len=1024,
            compute_dtype=mx.bfloat16,
            document_mask=mask,
            backend="cuda",
        ).peak
        for mask in (False, True)
    )
    of_one = 2 * settings.batch_size * 1024 * 1024 * (1 + UNDER_WAY_FACTOR)
    assert 1 <= (masked - plain) / of_one < 1.5


@pytest.mark.parametrize(
    ("backend", "dtype", "head_dim", "kept"),
    [
        ("cuda", mx.bfloat16, 64, False),
        ("cuda", None, 64, True),
        ("cuda", mx.bfloat16, 256, True),
        ("metal", mx.bfloat16, 64, True),
        ("cpu", mx.bfloat16, 64, True),
    ],
)
def test_scores_are_kept_where_attention_has_no_kernel_for_training(backend, dtype, head_dim, kept):
    sizes = "train.seq_len=1024", "model.n_heads=2", "model.n_layers=4", f"model.head_dim={head_dim}"
    settings, ledger = ledger_of(*sizes)
    peak = estimate(
        *ledger._args, batch_size=settings.batch_size, seq_len=1024, compute_dtype=dtype, backend=backend
    ).peak
    scores = 4 * settings.batch_size * 2 * 1024 * 1024 * (4 if dtype is None else 2)
    assert (peak > 1.5 * scores) == kept


@pytest.mark.parametrize("backend", ["cuda", "metal"])
def test_capped_logits_have_no_function_with_their_loss_and_are_kept_in_fp32(backend):
    """As Gemma 2's. Of others the gradient keeps the logits alone."""

    def peak(*overrides):
        cfg = lmxexp.compose([*SMALL, "train.seq_len=512", *overrides])
        model = build_model(cfg, vocab_size=8192)
        model.train()
        optimizer = optimizer_of(cfg)
        optimizer.init(model.trainable_parameters())
        sizes = {"batch_size": 8, "seq_len": 512, "compute_dtype": mx.bfloat16, "backend": backend}
        return estimate(model, optimizer, build(cfg.loss), **sizes).peak

    more = peak("softcap@model.logit_softcap=tanh") - peak()
    assert more > (2 + 4 + 4) * 8 * 512 * 8192, "capped in bf16, in fp32, and its gradient"


@pytest.mark.parametrize("n_micro", ["auto", "2"])
@pytest.mark.parametrize("remat", ["auto", "light"])
def test_what_is_auto(n_micro, remat):
    settings, _ = ledger_of(f"train.n_micro={n_micro}", f"train.remat={remat}")
    assert settings.autos == ["n_micro"] * (n_micro == "auto") + ["remat"] * (remat == "auto")


# --- how many ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(200))
def test_the_first_that_fits(seed):
    """Against trying all of them; a first part more may cost more than it saves, as it keeps a sum."""
    rng = random.Random(seed)
    batch_size, fixed, kept, per_row = rng.randint(1, 64), rng.random(), rng.random(), rng.random()
    limit = rng.uniform(0, 1.5 * (fixed + per_row * batch_size))
    group = [Way(n, "none") for n in range(1, batch_size + 1) if batch_size % n == 0]

    def fits(way):
        return fixed + (kept if way.n_micro > 1 else 0) + per_row * batch_size / way.n_micro <= limit

    assert first_fitting(group, fits) == next((way for way in group if fits(way)), None)


AUTO = "train.n_micro=auto", "train.remat=auto"


def test_what_comes_first():
    """Parts as long as they are large, then recomputation, then smaller parts."""
    size = ENOUGH_TOKENS // 2  # of a sequence
    settings, _ = ledger_of(*AUTO, "train.batch_size=4", f"train.seq_len={size}")
    in_order = [(1, "none"), (2, "none"), (1, "light"), (2, "light"), (1, "block"), (2, "block")]
    in_order += [(4, "none"), (4, "light"), (4, "block")]
    assert [way for group in ways(settings) for way in group] == in_order
    beyond = [(2, "block"), (4, "light"), (4, "block")]
    assert [way for group in ways(settings, Way(2, "light")) for way in group] == beyond
    assert ways(settings, Way(4, "block")) == []
    fixed = dataclasses.replace(settings, n_micro=2)
    assert [way for group in ways(fixed) for way in group] == [(2, "none"), (2, "light"), (2, "block")]


def test_what_is_given_stays():
    settings, ledger = ledger_of("train.n_micro=2", "train.memory_limit_gb=1e-9")
    assert fitted(settings, ledger) == settings


@pytest.mark.parametrize("remat", ["none", "auto"])
def test_more_logits_than_mlx_can_index_are_refused_and_auto_keeps_below(monkeypatch, remat):
    """Eight sequences of 16 tokens, 256 logits each: 32,768."""
    monkeypatch.setattr("lmxexp.train.fitted.LARGEST", 10_000)
    for n_micro in ("1", "2"):
        settings, ledger = ledger_of(f"train.n_micro={n_micro}", f"train.remat={remat}")
        with pytest.raises(ConfigError, match=rf"train\.n_micro={n_micro}: .* logits.* set train\.n_micro=4, or auto"):
            fitted(settings, ledger)
    settings, ledger = ledger_of("train.n_micro=auto", f"train.remat={remat}")
    assert fitted(settings, ledger).n_micro == 4
    monkeypatch.setattr("lmxexp.train.fitted.LARGEST", 4_000)
    with pytest.raises(ConfigError, match=r"a part of 1 x 16 tokens has 4,096 logits, .*; train\.seq_len, or"):
        fitted(settings, ledger)


@pytest.mark.usefixtures("_on_a_cpu")
@pytest.mark.parametrize("n_micro", ["1", "auto"])
def test_as_little_recomputation_as_fits(n_micro, capsys):
    sizes = "train.seq_len=512", "model.n_layers=4"  # as a whole it has just enough tokens
    settings, ledger = ledger_of(*sizes, f"train.n_micro={n_micro}", "train.remat=auto")
    auto = "train.n_micro=auto: 1, " if n_micro == "auto" else ""
    for remat in ("none", "light", "block"):
        limit = ledger.of(1, remat).peak / SPARE / device.GB * 1.0001
        limited = dataclasses.replace(settings, memory_limit_gb=limit)
        chosen = fitted(limited, ledger)
        assert (chosen.n_micro, chosen.remat) == (1, remat)
        assert f"{auto}train.remat=auto: {remat}, which takes about" in capsys.readouterr().err
        assert fitted(limited, ledger, known={"remat": "light", "n_micro": 1}).remat == "light"
    impossible = dataclasses.replace(settings, memory_limit_gb=1e-6)
    with pytest.raises(ConfigError, match=r"train\.remat=auto: not even .* into 1e-06 GB: it takes about .*logits"):
        fitted(impossible, ledger)


def test_as_few_as_fit(capsys):
    settings, ledger = ledger_of("train.n_micro=auto")
    for n in (1, 2, 8):
        limit = ledger.of(n, "none").peak / SPARE / device.GB * 1.0001
        limited = dataclasses.replace(settings, memory_limit_gb=limit)
        assert fitted(limited, ledger).parts == n
        assert f"train.n_micro=auto: {n}, which takes about" in capsys.readouterr().err
        assert fitted(limited, ledger, beyond=Way(2, "none")).parts == max(n, 4)
        assert fitted(limited, ledger, known={"n_micro": 2}).parts == 2
    with pytest.raises(
        ConfigError, match=r"not even one sequence at a time fits into 1e-06 GB: it takes about .*logits"
    ):
        fitted(dataclasses.replace(settings, memory_limit_gb=1e-6), ledger)


@pytest.mark.parametrize(("n_micro", "remat"), [(1, "none"), (8, "none"), (1, "block")])
def test_what_is_listed_comes_to_the_peak(n_micro, remat):
    _, ledger = ledger_of()
    units = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
    peak, *parts = [float(n) * units[u] for n, u in re.findall(r"([\d.]+) ([kMG]?B)", ledger.text(n_micro, remat))]
    assert sum(parts) == pytest.approx(peak, rel=0.01)


def test_without_a_limit_it_is_whole(monkeypatch):
    monkeypatch.setattr(device, "memory_to_fit_gb", lambda: None)
    settings, ledger = ledger_of("train.n_micro=auto")
    assert fitted(settings, ledger).parts == 1


@pytest.mark.parametrize("value", ["0", "-1", "some", "1.5"])
def test_other_values_are_refused(value):
    with pytest.raises(ConfigError, match=r"train\.n_micro=.* must be at least 1, or auto"):
        build(lmxexp.compose([*SMALL, f"train.n_micro={value}"]).train)


METAL_FAILED, METAL_CALLBACK = "[METAL] Command buffer execution failed", "kIOGPUCommandBufferCallbackError"


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (RuntimeError("[metal::malloc] Attempting to allocate 9 bytes which is greater than …"), True),
        (RuntimeError("cudaMallocAsync(&data, size, stream) failed: out of memory"), True),
        (RuntimeError(f"{METAL_FAILED}: Insufficient Memory (00000008:{METAL_CALLBACK}OutOfMemory)"), True),
        (RuntimeError(f"{METAL_FAILED}: Caused GPU Timeout Error (00000002:{METAL_CALLBACK}Timeout)"), False),
        (MemoryLimitError("peak memory 2 GB is above the limit"), True),
        (RuntimeError("something else"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_is_out_of_memory(error, is_one):
    assert is_out_of_memory(error) is is_one


# --- in a run ---------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("end", [1, 5])
def test_it_goes_on_after_a_step_that_was_computed(too_large, monkeypatch, end):
    """And turned out to have taken too much: the steps that follow are those of the run that goes on."""
    after_step = Trainer._after_step

    def limited(trainer, scalars):
        after_step(trainer, scalars)
        if trainer.step == end and trainer.settings.parts < 4:
            raise MemoryLimitError("peak memory 2 GB is above the limit of 1 GB")

    too_large.most = 8
    monkeypatch.setattr(Trainer, "_after_step", limited)
    result = trained("auto", "train.n_micro=auto")
    assert (result.status, result.summary["step"]) == ("ok", 8)
    assert sorted(set(too_large.rows), reverse=True) == [8, 4, 2]
    assert too_large.rows[-4:] == [2] * 4
    if end == 1:
        trained("four", "train.n_micro=4")
        for path, want in weights_of("four").items():
            assert mx.array_equal(weights_of("auto")[path], want).item(), path
        lines = [
            [json.loads(line) for line in (Path(name) / "metrics.jsonl").read_text().splitlines()]
            for name in ("auto", "four")
        ]
        losses = [[(line["step"], line["train/loss"]) for line in of if "train/loss" in line] for of in lines]
        assert losses[0] == losses[1]


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


def test_the_first_model_is_gone_before_the_second_is_there(too_large, monkeypatch):
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


def test_parts_take_less_than_the_whole():
    """Of many logits: what a part takes beside its own arrays must not be more than what the parts save."""

    def peak(n_micro):
        cfg = lmxexp.compose([*SMALL, "train.seq_len=128", "train.batch_size=16"])
        model = build_model(cfg, vocab_size=4096)
        model.train()
        optimizer = optimizer_of(cfg)
        optimizer.init(model.trainable_parameters())
        step = TrainStep(model, optimizer, build(cfg.loss), n_micro=n_micro)
        ids = np.random.default_rng(0).integers(0, 4096, (16, 129)).astype(np.int32)
        with device.own_peak():
            for _ in range(2):
                mx.eval(step(Batch(ids[:, :-1], ids[:, 1:])), step.state)
            return device.peak_memory_gb()

    assert peak(2) < 0.7 * peak(1)
