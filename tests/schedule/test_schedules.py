"""Schedules against their closed forms, and what every file of conf/schedule has to do."""

import math
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lmxexp.interfaces import ConfigError
from lmxexp.schedule.constant import Constant
from lmxexp.schedule.cosine import Cosine
from lmxexp.schedule.linear import Linear
from lmxexp.schedule.wsd import WSD

FILES = sorted((Path(__file__).parents[2] / "conf/schedule").glob("*.yaml"))


def closed_form(step, *, warmup_steps, start, end, final, shape):
    """In plain Python, branch by branch: warmup, flat up to ``start``, ``shape`` down to ``final`` at ``end``."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if step < start:
        return 1.0
    if step >= end:
        return final
    return final + (1 - final) * shape((step - start) / (end - start))


LINE = lambda ratio: 1 - ratio
HALF_COSINE = lambda ratio: 0.5 * (1 + math.cos(math.pi * ratio))
ONE_MINUS_ROOT = lambda ratio: 1 - math.sqrt(ratio)
CASES = {
    "constant": (Constant(100, 10), {"warmup_steps": 10, "start": 999, "end": 1000, "final": 1.0, "shape": LINE}),
    "linear": (Linear(100, 10, 0.0), {"warmup_steps": 10, "start": 10, "end": 100, "final": 0.0, "shape": LINE}),
    "linear_final": (Linear(100, 0, 0.3), {"warmup_steps": 0, "start": 0, "end": 100, "final": 0.3, "shape": LINE}),
    "cosine": (
        Cosine(100, 10, 0.1),
        {
            "warmup_steps": 10,
            "start": 10,
            "end": 100,
            "final": 0.1,
            "shape": lambda r: 0.5 * (1 + math.cos(math.pi * r)),
        },
    ),
    "wsd": (
        WSD(100, 10, 0.25, 0.05),
        {"warmup_steps": 10, "start": 75, "end": 100, "final": 0.05, "shape": ONE_MINUS_ROOT},
    ),
    "wsd_all_cooldown": (
        WSD(100, 0, 1.0, 0.0),
        {"warmup_steps": 0, "start": 0, "end": 100, "final": 0.0, "shape": ONE_MINUS_ROOT},
    ),
}
STEPS = list(range(131))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [mx.int32, mx.uint64, mx.float32])
def test_closed_form(case, dtype):
    schedule, form = CASES[case]
    expected = [closed_form(step, **form) for step in STEPS]
    found = [schedule(mx.array(step, dtype)).item() for step in STEPS]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("case", CASES)
def test_compiled_and_mapped_equal_eager(case):
    schedule, _ = CASES[case]
    steps = mx.array(STEPS)
    eager = [schedule(step).item() for step in steps]
    compiled = mx.compile(schedule)
    np.testing.assert_allclose([compiled(step).item() for step in steps], eager, rtol=1e-6, atol=2e-7)
    np.testing.assert_allclose(np.array(mx.vmap(schedule)(steps)), eager, rtol=1e-6, atol=2e-7)


def test_nanogpt_shakespeare_numbers():
    """1e-3 to 1e-4 with 100 warmup steps of 2000, computed by hand from its formula."""
    schedule = Cosine(steps=2000, warmup_steps=100, final=0.1)
    at = {0: 1 / 101, 99: 100 / 101, 100: 1.0, 1050: 0.55, 2000: 0.1, 9999: 0.1}
    for step, expected in at.items():
        assert schedule(mx.array(step)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("steps", "length"), [(1, 0), (6, 0), (10, 1), (300, 30), (5000, 500), (600_000, 1000)])
def test_default_warmup_is_a_tenth_and_at_most_1000(steps, length):
    for kind in (Constant, Linear, Cosine, WSD):
        assert kind(steps).warmup_steps == length
        assert kind(steps)(mx.array(length)).item() == pytest.approx(1.0)


# --- every file -------------------------------------------------------------------------------------------------------


def from_yaml(file, steps):
    config = OmegaConf.create({"train": {"steps": steps}, "schedule": OmegaConf.load(file)})
    return instantiate(config.schedule, _convert_="all")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("steps", [1, 2, 6, 300, 5000])
def test_every_yaml_gives_a_factor(file, steps):
    schedule = from_yaml(file, steps)
    values = schedule(mx.arange(2 * steps)) if steps > 300 else mx.stack([schedule(s) for s in mx.arange(2 * steps)])
    assert values.min().item() >= 0
    assert pytest.approx(values.max().item()) == 1.0
    assert values[: max(1, steps // 2)].max().item() == pytest.approx(1.0)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_yaml_works_traced(file):
    schedule = from_yaml(file, 300)
    steps = mx.array([0, 1, 29, 30, 299, 300, 999], mx.uint64)
    compiled = mx.compile(schedule)
    values = [compiled(step) for step in steps]
    assert all(value.dtype == mx.float32 and value.shape == () for value in values)
    np.testing.assert_allclose(np.array(mx.vmap(schedule)(steps)), [v.item() for v in values], rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_yaml_describes_itself_and_is_no_partial(file):
    assert file.read_text().startswith("# ")
    assert "_partial_" not in OmegaConf.load(file)


# --- bad settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Constant, Linear, Cosine, WSD])
def test_bad_warmup_and_steps(kind):
    with pytest.raises(ConfigError, match=r"schedule\.warmup_steps=300 must be below schedule\.steps=300: lower it"):
        kind(steps=300, warmup_steps=300)
    with pytest.raises(ConfigError, match=r"schedule\.warmup_steps=-1 must not be negative"):
        kind(steps=300, warmup_steps=-1)
    with pytest.raises(ConfigError, match=r"schedule\.steps=0 must be at least 1"):
        kind(steps=0)


@pytest.mark.parametrize("kind", [Linear, Cosine, WSD])
@pytest.mark.parametrize("final", [-0.1, 1.1, float("nan")])
def test_bad_final(kind, final):
    with pytest.raises(ConfigError, match=rf"schedule\.final={final} must lie in \[0, 1\]"):
        kind(steps=300, final=final)


@pytest.mark.parametrize("fraction", [0, -0.2, 1.5, float("nan")])
def test_bad_decay_fraction(fraction):
    with pytest.raises(ConfigError, match=rf"schedule\.decay_fraction={fraction} must lie in \(0, 1\]"):
        WSD(steps=300, decay_fraction=fraction)


def test_warmup_and_cooldown_must_fit():
    assert WSD(steps=100, warmup_steps=80, decay_fraction=0.2)(mx.array(80)).item() == 1
    with pytest.raises(ConfigError, match=r"the cooldown at step 80, within the 81 steps of schedule\.warmup_steps"):
        WSD(steps=100, warmup_steps=81, decay_fraction=0.2)
