"""The compiled step along a ramp: one trace for each shape and no more, alone and in a population."""

import mlx.core as mx
import numpy as np
import pytest

from lmxexp.interfaces import Batch
from lmxexp.loss.cross_entropy import CrossEntropy
from lmxexp.ops.trees import by_path
from lmxexp.ramp.batch_size import BatchSize
from lmxexp.ramp.seq_len import SeqLen
from lmxexp.train.sentinel import CompileSentinel, RetraceError
from tests.contracts.small_models import relative_error
from tests.train.small_run import RandomTokens, make_step

RAMPS = {
    "batch_size": BatchSize(steps=40, batch_size=8, seq_len=16, start=1, until=0.6),
    "seq_len": SeqLen(steps=8, batch_size=8, seq_len=16, start=2, until=0.5),
}
STEPS = {"batch_size": [0, 8, 9, 16, 24, 25], "seq_len": [0, 1, 2, 3, 4, 5]}
"""Steps of every stage, among them two of the first and of the last."""


class Noting(CrossEntropy):
    """The loss, which notes the shapes that it is traced with."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __call__(self, model, batch):
        self.seen.append(tuple(batch.inputs.shape))
        return super().__call__(model, batch)


def along(step, ramp, steps, source=None):
    losses = []
    for i in steps:
        scalars = step(ramp.batch(source or RandomTokens(), i))
        mx.eval(scalars, step.state)
        losses.append(scalars["train/loss"].item())
    return losses


@pytest.mark.parametrize("n_micro", [1, 2, 8])
@pytest.mark.parametrize("grows", RAMPS)
def test_each_shape_is_traced_once(grows, n_micro):
    ramp = RAMPS[grows]
    step = make_step(n_micro=n_micro, stages=ramp.stages)
    step.loss = loss = Noting()
    along(step, ramp, STEPS[grows])
    called = set()
    for i in STEPS[grows]:
        rows, length = ramp.batch(RandomTokens(), i).inputs.shape
        parts = step.parts[rows, length]
        called.add((parts == 1, rows // parts, length))
    assert sorted(loss.seen) == sorted((rows, length) for _, rows, length in called), (
        "as a whole and as a part, once each"
    )
    full = 8 * 16
    assert all(rows * length <= full // n_micro for rows, length in loss.seen), "a part is larger than a micro-batch"
    whole = step.sentinel.traces.get("training step", 0)
    parts = step.sentinel.traces.get("gradient of a part", 0)
    assert whole + parts == len(loss.seen)
    assert step.sentinel.traces.get("optimizer update", 0) == (parts > 0), "its inputs have one shape"
    allowed = step.sentinel.allowed
    assert (allowed["training step"], allowed["gradient of a part"]) == (whole, parts), "all that is allowed was used"
    # Nothing more is traced from here on.
    along(step, ramp, STEPS[grows])
    assert len(loss.seen) == whole + parts


@pytest.mark.parametrize("n_micro", [1, 8])
@pytest.mark.parametrize("grows", RAMPS)
def test_one_shape_more_is_a_retrace(grows, n_micro):
    ramp = RAMPS[grows]
    step = make_step(n_micro=n_micro, stages=ramp.stages)
    along(step, ramp, STEPS[grows])
    with pytest.raises(RetraceError, match=r"batch\.inputs was int32\[\d+, \d+\], is int32\[\d+, 12\]"):
        step(RandomTokens(length=12).batch(0))


def test_a_shape_that_is_traced_again_is_a_retrace_while_others_are_to_come():
    ramp = RAMPS["batch_size"]
    step = make_step(stages=ramp.stages)
    along(step, ramp, [0, 8])
    batch = ramp.batch(RandomTokens(), 9)
    with pytest.raises(RetraceError, match=r"training step was traced 3 times, 4 expected: batch\.inputs was int32"):
        step(Batch(batch.inputs.astype(np.int16), batch.targets))


def test_a_function_that_no_shape_calls_for_is_a_retrace():
    sentinel = CompileSentinel({"training step": 2, "gradient of a part": 0})
    for rows in (1, 2):
        sentinel.traced("training step", batch={"inputs": mx.zeros((rows, 3))})
    with pytest.raises(RetraceError, match="gradient of a part was traced 1 times, 0 expected"):
        sentinel.traced("gradient of a part", batch={"inputs": mx.zeros((1, 3))})
    with pytest.raises(RetraceError, match="training step was traced 3 times, 2 expected"):
        sentinel.traced("training step", batch={"inputs": mx.zeros((4, 3))})


@pytest.mark.parametrize("grows", RAMPS)
def test_parts_are_the_whole(grows):
    """Every stage computes the same update, in however many parts."""
    ramp = RAMPS[grows]
    steps, source = STEPS[grows], RandomTokens(weights=True)
    whole, parts = make_step(stages=ramp.stages), make_step(stages=ramp.stages, n_micro=4)
    assert along(parts, ramp, steps, source) == pytest.approx(along(whole, ramp, steps, source), rel=1e-4)
    want = by_path(whole.model.parameters())
    for path, got in by_path(parts.model.parameters()).items():
        assert relative_error(got, want[path]) < 2e-3, path  # Adam divides by small second moments: rounding grows


@pytest.mark.parametrize("n_micro", [1, 4])
@pytest.mark.parametrize("grows", RAMPS)
def test_compiled_equals_eager(grows, n_micro):
    ramp = RAMPS[grows]
    compiled, eager = (
        make_step("model.dropout=0.2", stages=ramp.stages, n_micro=n_micro, compile=c) for c in (True, False)
    )
    steps = STEPS[grows]
    want = along(eager, ramp, steps)
    mx.random.seed(5)
    assert along(compiled, ramp, steps) == pytest.approx(want, rel=1e-4)
