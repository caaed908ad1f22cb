"""Schedules against their closed forms, and what every file of conf/schedule has to do."""

import math
from functools import partial
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lmxexp.interfaces import ConfigError
from lmxexp.schedule.constant import Constant
from lmxexp.schedule.cooldown import Cooldown
from lmxexp.schedule.cosine import Cosine
from lmxexp.schedule.inverse_sqrt import InverseSqrt
from lmxexp.schedule.linear import Linear
from lmxexp.schedule.one_cycle import OneCycle
from lmxexp.schedule.wsd import WSD
from tests.population.close import rounding
from tests.population.test_step import assert_members

FILES = sorted((Path(__file__).parents[2] / "conf/schedule").glob("*.yaml"))


def closed_form(step, *, warmup_steps, start, end, final, shape, peak=1.0):
    """In plain Python, branch by branch: warmup, flat up to ``start``, ``shape`` down to ``final`` at ``end``."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if step < start:
        return peak
    if step >= end:
        return final
    if shape is EXPONENTIAL:
        return peak * (final / peak) ** ((step - start) / (end - start))
    return final + (peak - final) * shape((step - start) / (end - start))


def inverse_sqrt(step, *, warmup_steps):
    """Equation 3 of Vaswani et al., with its steps from 1, times what makes the peak 1."""
    step, warmup = step + 1, warmup_steps + 1
    return min(step**-0.5, step * warmup**-1.5) * warmup**0.5


def one_cycle(step, *, corners, line):
    """From corner to corner, each ``(step, factor)``."""
    for (start, before), (end, after) in pairwise(corners):
        if step <= end:
            done = (step - start) / (end - start)
            return before + (after - before) * (done if line else (1 - math.cos(math.pi * done)) / 2)
    return corners[-1][1]


LINE = lambda ratio: 1 - ratio
HALF_COSINE = lambda ratio: 0.5 * (1 + math.cos(math.pi * ratio))
ONE_MINUS_ROOT = lambda ratio: 1 - math.sqrt(ratio)
EXPONENTIAL = object()
SHAPES = {
    "linear": LINE,
    "cosine": HALF_COSINE,
    "mirror_cosine": lambda ratio: 2 * LINE(ratio) - HALF_COSINE(ratio),
    "sqrt": ONE_MINUS_ROOT,
    "square": lambda ratio: 1 - ratio**2,
    "exponential": EXPONENTIAL,
}


def flat_then(shape, *, warmup_steps, start, end, final, peak=1.0):
    return partial(closed_form, warmup_steps=warmup_steps, start=start, end=end, final=final, shape=shape, peak=peak)


CASES = {
    "constant": (Constant(100, 10), flat_then(LINE, warmup_steps=10, start=999, end=1000, final=1.0)),
    "linear": (Linear(100, 10, 0.0), flat_then(LINE, warmup_steps=10, start=10, end=100, final=0.0)),
    "linear_final": (Linear(100, 0, 0.3), flat_then(LINE, warmup_steps=0, start=0, end=100, final=0.3)),
    "cosine": (Cosine(100, 10, 0.1), flat_then(HALF_COSINE, warmup_steps=10, start=10, end=100, final=0.1)),
    "wsd": (WSD(100, 10, 0.25, 0.05), flat_then(ONE_MINUS_ROOT, warmup_steps=10, start=75, end=100, final=0.05)),
    "wsd_all_cooldown": (WSD(100, 0, 1.0, 0.0), flat_then(ONE_MINUS_ROOT, warmup_steps=0, start=0, end=100, final=0.0)),
    **{
        f"wsd_{name}": (
            WSD(100, 10, 0.3, 0.02, shape=name),
            flat_then(shape, warmup_steps=10, start=70, end=100, final=0.02),
        )
        for name, shape in SHAPES.items()
    },
    **{
        f"cooldown_{name}": (
            Cooldown(100, 60, start=40, factor=0.7, shape=name, final=0.02),
            flat_then(shape, warmup_steps=0, start=40, end=100, final=0.02, peak=0.7),
        )
        for name, shape in SHAPES.items()
    },
    "cooldown_zero": (
        Cooldown(100, 1, start=99, factor=1.0),
        flat_then(ONE_MINUS_ROOT, warmup_steps=0, start=99, end=100, final=0.0),
    ),
    "inverse_sqrt": (InverseSqrt(100, 10), partial(inverse_sqrt, warmup_steps=10)),
    "inverse_sqrt_no_warmup": (InverseSqrt(100, 0), partial(inverse_sqrt, warmup_steps=0)),
    "one_cycle": (
        OneCycle(100, 29, 0.04, 0.01),
        partial(one_cycle, corners=[(0, 0.04), (29, 1.0), (99, 0.01)], line=False),
    ),
    "one_cycle_line": (
        OneCycle(100, 40, 0.2, 0.0, annealing="linear"),
        partial(one_cycle, corners=[(0, 0.2), (40, 1.0), (99, 0.0)], line=True),
    ),
    "one_cycle_three": (
        OneCycle(100, 40, 0.2, 0.01, annealing="linear", phases=3),
        partial(one_cycle, corners=[(0, 0.2), (40, 1.0), (80, 0.2), (99, 0.01)], line=True),
    ),
}
STEPS = list(range(131))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [mx.int32, mx.uint64, mx.float32])
def test_closed_form(case, dtype):
    schedule, form = CASES[case]
    expected = [form(step) for step in STEPS]
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


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("final", [0.05, 1e-3, 1 / 3])
def test_corners_are_exact(shape, final):
    """The first step, the first and the last at the peak, the end and beyond: to the last bit of fp32."""
    exactly = lambda schedule, step: schedule(mx.array(step)).item()
    wsd = WSD(steps=700, warmup_steps=70, decay_fraction=0.3, final=final, shape=shape)
    assert exactly(wsd, 0) == np.float32(1) / np.float32(71)
    assert [exactly(wsd, step) for step in (70, 71, 489, 490)] == [1.0] * 4
    assert [exactly(wsd, step) for step in (700, 701, 9999)] == [np.float32(final)] * 3
    assert 1 > exactly(wsd, 491) > exactly(wsd, 699) > final
    cooldown = Cooldown(steps=700, cooldown_steps=210, start=490, factor=1.0, final=final, shape=shape)
    assert [exactly(cooldown, s) for s in range(480, 720)] == [exactly(wsd, s) for s in range(480, 720)]
    lower = Cooldown(steps=700, cooldown_steps=210, start=490, factor=0.4, final=final, shape=shape)
    assert [exactly(lower, step) for step in (489, 490)] == [np.float32(0.4)] * 2
    assert exactly(lower, 700) == np.float32(final)


def test_corners_of_the_other_kinds_are_exact():
    exactly = lambda schedule, step: schedule(mx.array(step)).item()
    root = InverseSqrt(steps=700, warmup_steps=3)
    assert [exactly(root, step) for step in (0, 1, 2, 3, 15, 63)] == [0.25, 0.5, 0.75, 1.0, 0.5, 0.25]
    for annealing in ("cosine", "linear"):
        cycle = OneCycle(steps=700, warmup_steps=70, initial=0.04, final=0.003, annealing=annealing)
        assert exactly(cycle, 0) == np.float32(0.04)
        assert exactly(cycle, 70) == 1
        assert [exactly(cycle, step) for step in (699, 700, 9999)] == [np.float32(0.003)] * 3
        assert exactly(cycle, 69) < 1 > exactly(cycle, 71)
        assert exactly(cycle, 698) > np.float32(0.003)
        three = OneCycle(steps=700, warmup_steps=70, initial=0.04, final=0.003, annealing=annealing, phases=3)
        assert [exactly(three, step) for step in (0, 70, 140, 699)] == [*np.float32([0.04, 1, 0.04, 0.003])]
    assert exactly(OneCycle(steps=700, warmup_steps=0), 0) == 1


@pytest.mark.parametrize("annealing", ["cosine", "linear"])
@pytest.mark.parametrize("phases", [2, 3])
@pytest.mark.parametrize(("steps", "warmup_steps"), [(100, None), (1000, None), (250, 99), (64, 3)])
def test_one_cycle_is_pytorchs(annealing, phases, steps, warmup_steps):
    torch = pytest.importorskip("torch")
    schedule = OneCycle(steps, warmup_steps, initial=0.05, final=0.002, annealing=annealing, phases=phases)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=1.0,
        total_steps=steps,
        pct_start=0.3 if warmup_steps is None else (warmup_steps + 1) / steps,
        anneal_strategy={"cosine": "cos", "linear": "linear"}[annealing],
        cycle_momentum=False,
        div_factor=20,
        final_div_factor=25,
        three_phase=phases == 3,
    )
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < steps:
            theirs.step()
    found = [schedule(mx.array(step)).item() for step in range(steps)]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=2e-7)


def test_defaults_of_one_cycle_are_pytorchs():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=100, cycle_momentum=False)
    group = optimizer.param_groups[0]
    schedule = OneCycle(100)
    assert (schedule.initial, schedule.final) == pytest.approx((group["initial_lr"], group["min_lr"]))
    assert schedule.warmup_steps == 29


def test_inverse_sqrt_is_that_of_transformers():
    optimization = pytest.importorskip("transformers.optimization")
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = optimization.get_inverse_sqrt_schedule(optimizer, num_warmup_steps=11).lr_lambdas[0]
    schedule = InverseSqrt(steps=100, warmup_steps=10)
    found = [schedule(mx.array(step)).item() for step in STEPS]
    np.testing.assert_allclose(found, [theirs(step + 1) for step in STEPS], rtol=1e-6)


@pytest.mark.parametrize(("shape", "theirs"), [("linear", "linear"), ("cosine", "cosine"), ("sqrt", "1-sqrt")])
def test_wsd_is_that_of_transformers(shape, theirs):
    """The cooldown: their warmup begins at 0."""
    optimization = pytest.importorskip("transformers.optimization")
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    other = optimization.get_wsd_schedule(
        optimizer, num_warmup_steps=10, num_stable_steps=60, num_decay_steps=30, decay_type=theirs, min_lr_ratio=0.1
    ).lr_lambdas[0]
    schedule = WSD(steps=100, warmup_steps=10, decay_fraction=0.3, final=0.1, shape=shape)
    found = [schedule(mx.array(step)).item() for step in range(10, 120)]
    np.testing.assert_allclose(found, [other(step) for step in range(10, 120)], rtol=1e-6, atol=2e-7)


def test_members_of_a_population_have_schedules_of_their_own():
    """Weights, states and learning rates are to the bit what each member has alone, on the CPU."""
    kinds = [
        ["schedule=one_cycle", "schedule.phases=3", "schedule.warmup_steps=1"],
        ["schedule=inverse_sqrt", "schedule.warmup_steps=1"],
        ["schedule=wsd", "schedule.decay_fraction=0.9", "schedule.shape=exponential", "schedule.final=0.1"],
        ["schedule=cooldown", "schedule.cooldown_steps=19", "schedule.start=1", "schedule.factor=0.5"],
    ]
    assert_members([], kinds, tolerance=rounding(0.0))


def test_nanogpt_shakespeare_numbers():
    """1e-3 to 1e-4 with 100 warmup steps of 2000, computed by hand from its formula."""
    schedule = Cosine(steps=2000, warmup_steps=100, final=0.1)
    at = {0: 1 / 101, 99: 100 / 101, 100: 1.0, 1050: 0.55, 2000: 0.1, 9999: 0.1}
    for step, expected in at.items():
        assert schedule(mx.array(step)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("steps", "length"), [(1, 0), (6, 0), (10, 1), (300, 30), (5000, 500), (600_000, 1000)])
def test_default_warmup_is_a_tenth_and_at_most_1000(steps, length):
    for kind in (Constant, Linear, Cosine, WSD, InverseSqrt):
        assert kind(steps).warmup_steps == length
        assert kind(steps)(mx.array(length)).item() == pytest.approx(1.0)


# --- every file -------------------------------------------------------------------------------------------------------


def from_yaml(file, steps):
    """As a run has it; a cooldown's branches off in the middle."""
    branch = {"step": steps // 2, "factor": 1.0}
    config = OmegaConf.create({"train": {"steps": steps}, "branch": branch, "schedule": OmegaConf.load(file)})
    if OmegaConf.is_missing(config.schedule, "cooldown_steps"):
        config.schedule.cooldown_steps = steps - steps // 2
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


@pytest.mark.parametrize("kind", [Constant, Linear, Cosine, WSD, InverseSqrt, OneCycle])
def test_bad_warmup_and_steps(kind):
    with pytest.raises(ConfigError, match=r"schedule\.warmup_steps=300 must be below schedule\.steps=300: lower it"):
        kind(steps=300, warmup_steps=300)
    with pytest.raises(ConfigError, match=r"schedule\.warmup_steps=-1 must not be negative"):
        kind(steps=300, warmup_steps=-1)
    with pytest.raises(ConfigError, match=r"schedule\.steps=0 must be at least 1"):
        kind(steps=0)


@pytest.mark.parametrize(
    "kind", [Linear, Cosine, WSD, OneCycle, partial(Cooldown, cooldown_steps=9, start=291, factor=1.0)]
)
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


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"start": None}, r"schedule=cooldown goes down from where another run stands: say which, branch=RUN_DIR"),
        ({"cooldown_steps": 0}, r"schedule\.cooldown_steps=0 must be at least 1"),
        ({"cooldown_steps": -3}, r"schedule\.cooldown_steps=-3 must be at least 1"),
        ({"steps": 99}, r"schedule\.cooldown_steps=20 from step 80 on ends at step 100, and train\.steps=99: set"),
        ({"final": 0.5, "factor": 0.5}, r"schedule\.final=0\.5 must be below the learning rate at the branch"),
        ({"shape": "exponential"}, r"schedule\.final=0\.0 is never reached by schedule\.shape=exponential"),
        ({"shape": "round"}, r"schedule\.shape=round must be one of linear, cosine, mirror_cosine, sqrt, square, exp"),
    ],
)
def test_bad_cooldown(settings, says):
    good = {"steps": 100, "cooldown_steps": 20, "start": 80, "factor": 1.0}
    Cooldown(**good)
    with pytest.raises(ConfigError, match=says):
        Cooldown(**good | settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"initial": 0.0}, r"schedule\.initial=0\.0 must lie in \(0, 1\]"),
        ({"initial": 1.5}, r"schedule\.initial=1\.5 must lie in \(0, 1\]"),
        ({"annealing": "square"}, r"schedule\.annealing=square must be cosine or linear"),
        ({"phases": 4}, r"schedule\.phases=4 must be 2 or 3"),
        ({"phases": 3, "warmup_steps": 50}, r"schedule\.phases=3 rises and falls in 50 steps each"),
        ({"phases": 3, "warmup_steps": 0}, r"schedule\.phases=3 rises and falls in 0 steps each"),
    ],
)
def test_bad_one_cycle(settings, says):
    with pytest.raises(ConfigError, match=says):
        OneCycle(steps=100, **settings)


def test_bad_shape():
    with pytest.raises(ConfigError, match=r"schedule\.shape=1-sqrt must be one of linear"):
        WSD(steps=100, shape="1-sqrt")
    with pytest.raises(ConfigError, match=r"schedule\.final=0\.0 is never reached by schedule\.shape=exponential"):
        WSD(steps=100, shape="exponential")
