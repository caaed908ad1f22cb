"""The training step: compiled state, accumulation, precision, clipping, the sentinel."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxexp.interfaces import Batch
from lmxexp.train import self_test as module
from lmxexp.train.random_state import get_random_state
from lmxexp.train.self_test import SelfTestError, self_test
from lmxexp.train.sentinel import RetraceError
from tests.contracts.small_models import relative_error
from tests.train.small_run import RandomTokens, make_step


def run(step, source, n=4, first=0):
    """Scalars of ``n`` steps, and the parameters after them."""
    scalars = []
    for i in range(first, first + n):
        out = step(source.batch(i))
        mx.eval(out, step.state)
        scalars.append({name: value.item() for name, value in out.items()})
    return scalars, {name: mx.array(p) for name, p in tree_flatten(step.model.parameters())}


def assert_same(a, b, tolerance):
    for name, p in b.items():
        error = relative_error(a[name], p) if tolerance else float(not mx.array_equal(a[name], p).item())
        assert error <= tolerance, name


@pytest.mark.parametrize("n_micro", [1, 4])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_compiled_equals_eager(n_micro, dropout):
    """Losses, learning rates and weights over several steps: no part of the state is a constant of the trace."""
    overrides = [f"model.dropout={dropout}"]
    scalars, params = run(make_step(*overrides, n_micro=n_micro, compile=True), RandomTokens())
    want_scalars, want = run(make_step(*overrides, n_micro=n_micro, compile=False), RandomTokens())
    assert_same(params, want, 1e-4)
    assert [s["train/lr"] for s in scalars] == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2])
    assert [s["train/loss"] for s in scalars] == pytest.approx([s["train/loss"] for s in want_scalars], rel=1e-5)


def test_one_trace_each():
    whole, parts = make_step(), make_step(n_micro=2)
    run(whole, RandomTokens())
    run(parts, RandomTokens())
    assert whole.sentinel.traces == {"training step": 1}
    assert parts.sentinel.traces == {"gradient of a part": 1, "optimizer update": 1}


@pytest.mark.parametrize("weights", [False, True])
def test_accumulation_is_the_whole_batch(weights):
    """Parts with different numbers of targets count by them."""
    source = RandomTokens(weights=weights)
    scalars, params = run(make_step(n_micro=4), source)
    want_scalars, want = run(make_step(n_micro=1), source)
    for a, b in zip(scalars, want_scalars, strict=True):
        assert a == pytest.approx(b, rel=2e-5)
    assert_same(params, want, 1e-3)  # Adam divides by small second moments: rounding grows


def test_dropout_differs_between_steps():
    """The same batch and weights, but another mask: the random state is captured."""
    step = make_step("model.dropout=0.5", optimizer=None)
    batch = RandomTokens().batch(0)
    before = get_random_state()
    step(batch)
    mx.eval(step.state)
    assert get_random_state() != before


def test_gradient_norm_and_clipping():
    """Against a float64 norm; the update of SGD at rate 1 is the clipped gradient itself."""
    from functools import partial

    import mlx.nn as nn
    import mlx.optimizers

    sgd = partial(mlx.optimizers.SGD, learning_rate=1.0)
    step = make_step(optimizer=sgd, max_grad_norm=0.01)
    step.optimizer._schedulers = {}
    batch = RandomTokens().batch(0)
    start = {n: np.array(p, dtype=np.float64) for n, p in tree_flatten(step.model.parameters())}
    gradient = nn.value_and_grad(step.model, lambda m: step.loss(m, Batch(*map(mx.array, batch[:2])))[0])(step.model)[1]
    flat = {n: np.array(g, dtype=np.float64) for n, g in tree_flatten(gradient)}
    norm = np.sqrt(sum((g**2).sum() for g in flat.values()))
    step.optimizer.learning_rate = 1.0
    scalars, params = run(step, RandomTokens(), n=1)
    assert scalars[0]["train/grad_norm"] == pytest.approx(norm, rel=1e-5)
    for name, g in flat.items():
        # In units of the largest weight: the update is small beside the weights, which round.
        assert np.abs(start[name] - g * 0.01 / norm - np.array(params[name])).max() < 1e-6 * max(
            1, np.abs(start[name]).max()
        )


@pytest.mark.parametrize("overrides", [[], ["attention=mla"], ["attention=mamba2"], ["model=gpt"]])
def test_gradients_lie_in_memory_as_weights_do(monkeypatch, overrides):
    """A kernel of ours would be handed copies of others, and an optimizer go through memory in two orders."""
    lying_otherwise = []

    def norm(gradient):
        lying_otherwise.extend(name for name, g in tree_flatten(gradient) if not np.asarray(g).flags.c_contiguous)
        return mx.array(1.0)

    monkeypatch.setattr("lmxexp.train.step.global_norm", norm)
    run(make_step(*overrides, compile=False), RandomTokens(), n=1)
    assert not lying_otherwise


def test_the_norm_reads_gradients_as_they_were_computed(monkeypatch):
    """In mixed precision: read by it and by the optimizer, wider ones would be written out between the two."""
    types = set()

    def norm(gradient):
        types.update(g.dtype for _, g in tree_flatten(gradient))
        return mx.array(1.0)

    monkeypatch.setattr("lmxexp.train.step.global_norm", norm)
    run(make_step(compute_dtype=mx.bfloat16), RandomTokens(), n=1)
    assert types == {mx.bfloat16}


@pytest.mark.parametrize("n_micro", [1, 4])
def test_mixed_precision_keeps_fp32_weights(n_micro):
    step = make_step(compute_dtype=mx.bfloat16, n_micro=n_micro)
    scalars, params = run(step, RandomTokens(), n=6)
    assert {p.dtype for p in params.values()} == {mx.float32}
    want, _ = run(make_step(), RandomTokens(), n=6)
    got, exact = scalars[-1]["train/loss"], want[-1]["train/loss"]
    assert got != exact, "the products were not in bf16"
    assert got == pytest.approx(exact, rel=2e-2)


def test_bf16():
    step = make_step(dtype=mx.bfloat16)
    scalars, params = run(step, RandomTokens(), n=6)
    assert {p.dtype for p in params.values()} == {mx.bfloat16}
    want, _ = run(make_step(), RandomTokens(), n=6)
    assert scalars[-1]["train/loss"] == pytest.approx(want[-1]["train/loss"], rel=5e-2)


def test_sentinel_names_the_cause():
    step = make_step()
    run(step, RandomTokens(length=16), n=1)
    with pytest.raises(RetraceError, match=r"batch\.inputs was int32\[8, 16\], is int32\[8, 12\]"):
        step(RandomTokens(length=12).batch(0))
    step = make_step()
    run(step, RandomTokens(), n=1)
    step.model.eval()
    # MLX does not retrace for a flag: this is why evaluation is a function of its own.
    run(step, RandomTokens(), n=1)
    assert step.sentinel.traces == {"training step": 1}


def test_self_test_leaves_no_trace_of_itself():
    step = make_step("model.dropout=0.2")
    make = lambda compile: make_like(step, compile)
    before = {n: mx.array(p) for n, p in tree_flatten([step.model.parameters(), step.optimizer.state])}
    mx.eval(before)
    random_state = get_random_state()
    self_test(make, [RandomTokens().batch(i) for i in range(2)], dropout=True, exact=True)
    assert_same(dict(tree_flatten([step.model.parameters(), step.optimizer.state])), before, 0)
    assert get_random_state() == random_state
    # And the state it put back is the one that a step compiled afterwards uses.
    _, params = run(step, RandomTokens())
    _, want = run(make_step("model.dropout=0.2"), RandomTokens())
    assert_same(params, want, 0)


def make_like(step, compile):
    from lmxexp.train.step import TrainStep

    return TrainStep(step.model, step.optimizer, step.loss, compile=compile)


def test_self_test_catches_a_step_that_is_not_compiled_right():
    step = make_step()

    def make(compile):
        made = make_like(step, compile)
        if compile:
            made.max_grad_norm = 0.1  # what a wrong constant in the trace would do
        return made

    with pytest.raises(SelfTestError, match="differ in"):
        self_test(make, [RandomTokens().batch(i) for i in range(2)], dropout=False, exact=True)


def test_self_test_catches_a_frozen_dropout_mask(monkeypatch):
    step = make_step("model.dropout=0.5")
    real = mx.compile
    without_random_state = lambda f, inputs=None, **given: real(f, inputs=inputs[:1]) if inputs else real(f, **given)
    monkeypatch.setattr(mx, "compile", without_random_state)
    plain = make_like(step, False)
    with pytest.raises(SelfTestError, match="dropout drops the same"):
        module._check_dropout(plain, RandomTokens().batch(0))
