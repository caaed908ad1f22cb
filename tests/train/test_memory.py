"""What a step is estimated to take, and what is chosen by it."""

import dataclasses
import random
import re

import mlx.core as mx
import numpy as np
import pytest

import lmxexp
from lmxexp import device
from lmxexp.build import build
from lmxexp.interfaces import Batch, ConfigError
from lmxexp.model.build import build_model
from lmxexp.optim.build import optimizer_of
from lmxexp.train.fitted import ENOUGH_TOKENS, SPARE, Way, first_fitting, fitted, ways
from lmxexp.train.memory import Ledger, MemoryLimitError, is_out_of_memory
from lmxexp.train.peak_memory import UNDER_WAY_FACTOR, estimate
from tests.train.composed import composed_step
from tests.train.small_text import AUTO, SMALL


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


def test_parts_take_less_than_the_whole():
    """Of many logits: what a part takes beside its own arrays must not be more than what the parts save."""

    # On a GPU the arrays of up to 200 MB stay until all kernels of a graph are through: parts have to be larger.
    size = 512 if device.is_gpu() else 16

    def peak(n_micro):
        step = composed_step(*SMALL, "train.seq_len=128", f"train.batch_size={size}", vocab_size=4096, n_micro=n_micro)
        ids = np.random.default_rng(0).integers(0, 4096, (size, 129)).astype(np.int32)
        with device.own_peak():
            for _ in range(2):
                mx.eval(step(Batch(ids[:, :-1], ids[:, 1:])), step.state)
            return device.peak_memory_gb()

    assert peak(2) < 0.7 * peak(1)


@pytest.mark.skipif(device.is_gpu(), reason="a GPU's limit is left to MLX")
def test_at_the_limit_arrays_are_no_longer_made_ahead():
    """The same steps take less: whole batches do, in which most arrays are alive at a time anyway."""

    def steps(limit_gb):
        step = composed_step("size=tiny", "model.n_layers=2", vocab_size=256, remat="block")
        ids = np.random.default_rng(0).integers(0, 256, (16, 129)).astype(np.int32)
        peaks, losses = [], []
        device.limit_memory(limit_gb)
        try:
            for _ in range(5):
                with device.own_peak():
                    scalars = step(Batch(ids[:, :-1], ids[:, 1:]))
                    mx.eval(scalars, step.state)
                    peaks.append(device.peak_memory_gb())
                losses.append(scalars["train/loss"].item())
        finally:
            device.limit_memory(None)
        return peaks[1:], losses

    ahead, losses = steps(None)
    at_the_limit, same = steps(0.7 * max(ahead))
    assert min(at_the_limit) < 0.85 * max(ahead)
    assert same == losses
