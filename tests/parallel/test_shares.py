"""What a process has of the batch, of random numbers, of the model, and of memory."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lmxexp import compose
from lmxexp.build import build
from lmxexp.optim.build import optimizer_of
from lmxexp.parallel.draws import rows_of
from lmxexp.parallel.setup import without_another_try
from lmxexp.parallel.world import ALONE
from lmxexp.ramp.batch_size import BatchSize
from lmxexp.ramp.none import NoRamp
from lmxexp.ramp.seq_len import SeqLen
from lmxexp.train.in_parts import InParts
from lmxexp.train.memory import Ledger, OutOfMemoryError
from lmxexp.train.random_state import STATE
from tests.ramp.test_stages import Numbered


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(
    "ramp",
    [NoRamp(16, 8), BatchSize(40, 16, 8, start=4, until=0.5), SeqLen(40, 16, 8, start=2, until=0.5)],
    ids=["none", "batch_size", "seq_len"],
)
def test_ranks_share_each_step_of_a_ramp(ramp, world):
    source = Numbered(16, 8)
    for step in range(40):
        whole = ramp.batch(source, step)
        shares = [ramp.batch(source, step, rank=rank, world=world) for rank in range(world)]
        for name, rows in whole._asdict().items():
            if rows is not None:
                np.testing.assert_array_equal(np.concatenate([getattr(share, name) for share in shares]), rows)


@pytest.mark.parametrize(
    "draw",
    [
        lambda n: mx.random.bernoulli(0.3, (n, 3)),
        lambda n: mx.random.bernoulli(mx.full((n, 3), 0.3)),
        lambda n: mx.random.uniform(-1, 2, (n, 5)),
        lambda n: mx.random.uniform(shape=[n]),
        lambda n: mx.random.normal((n, 2, 3), loc=1.0),
    ],
)
def test_rows_have_the_random_numbers_that_they_have_in_the_whole_batch(draw):
    mx.random.seed(3)
    whole, after = draw(8), STATE[0].tolist()
    for rank in range(4):
        mx.random.seed(3)
        with rows_of(rank, 4):
            own = draw(2)
        assert own.tolist() == whole[2 * rank : 2 * rank + 2].tolist()
        assert STATE[0].tolist() == after, "all go on from the same state"


def test_numbers_of_a_key_and_single_ones_are_everybodys():
    with rows_of(1, 4):
        own = mx.random.normal((4,), key=mx.random.key(1))
    assert own.tolist() == mx.random.normal((4,), key=mx.random.key(1)).tolist()
    with rows_of(1, 4):
        mx.random.seed(1)
        own = mx.random.uniform()
    mx.random.seed(1)
    assert own.item() == mx.random.uniform().item()


def parts_of(n, *overrides, vocab_size=257):
    cfg = compose(["model.d_model=64", "model.n_layers=1", "train.batch_size=4", "train.seq_len=32", *overrides])
    model = build(cfg.model.net)(vocab_size=vocab_size)
    optimizer = optimizer_of(cfg)
    optimizer.init(model.trainable_parameters())
    ledger = Ledger(model, optimizer, build(cfg.loss), build(cfg.train), None, n_devices=n)
    return InParts(model, optimizer, n), ledger


@pytest.mark.parametrize("overrides", [[], ["optim=lion"], ["optim=schedule_free_adamw"], ["param_groups=[vector]"]])
def test_parts_are_of_equal_size_along_an_axis_that_divides(overrides):
    parts, _ = parts_of(2, *overrides)
    axes = parts.axes["model"]
    assert {path for path, axis in axes.items() if axis} == {p for p in axes if "embed_tokens" in p}, "257 is odd"
    of_parameters = [path for path, shape in parts.shapes["optimizer"].items() if shape]
    assert of_parameters
    assert set(of_parameters) == set(parts.axes["optimizer"])


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("n_micro", [1, 2])
def test_the_ledger_of_parts(n, n_micro):
    whole, parts = (parts_of(k)[1].of(n_micro, "none") for k in (1, n))
    scalars = 16  # the step and the learning rate, which are everybody's
    assert parts.weights == whole.weights // n
    assert parts.gradients == whole.gradients // n
    assert parts.optimizer == pytest.approx(whole.optimizer / n, abs=scalars)
    assert parts.peak < whole.peak
    assert parts.logits == whole.logits, "the batch is that of one device in both"


@pytest.mark.parametrize("auto", ["n_micro", "remat"])
def test_out_of_memory_on_several_devices_says_how_to_go_on(auto):
    error = OutOfMemoryError("out of memory in step 3", Path("own"), None)
    trainer = SimpleNamespace(settings=SimpleNamespace(parts=2))
    pair: Any = SimpleNamespace(size=2)
    told = without_another_try(pair, Path("shared"), [auto], lambda *_: error)(MemoryError(), trainer)
    said = f"out of memory in step 3; on several devices train.{auto}=auto cannot begin again by itself: "
    assert str(told).startswith(said)
    assert "resume=shared goes on, with a larger train.n_micro beside it (the last had 2)" in str(told)
    for world, autos in ((pair, []), (ALONE, [auto])):
        assert without_another_try(world, Path("shared"), autos, lambda *_: error)(MemoryError(), trainer) is error
