"""Schedule-free optimizers against float64 references, those against the authors' package, and where x is."""

import functools

import mlx.core as mx
import numpy as np
import pytest
from mlx.optimizers import MultiOptimizer
from mlx.utils import tree_flatten, tree_map

from lmxexp.interfaces import ConfigError
from lmxexp.optim.adamw import AdamW
from lmxexp.optim.averaging import Averaging, evaluated
from lmxexp.optim.build import build_optimizer
from lmxexp.optim.muon import MuonWithAdamW
from lmxexp.optim.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from lmxexp.schedule.constant import Constant
from lmxexp.schedule.cosine import Cosine
from tests.optim.toy_problem import (
    MAX_NORM,
    STEPS,
    WARMUP,
    assert_same,
    by_mlx,
    factor,
    gradient,
    start,
    to_flat,
    to_tree,
)
from tests.population.close import rounding
from tests.population.test_step import assert_members
from tests.reference import optimizers as reference
from tests.reference import schedule_free as rules

DECAY = 0.3

# name: (class, reference rule, peak learning rate, settings)
KINDS = {
    "adamw": (ScheduleFreeAdamW, rules.schedule_free_adamw, 2e-2, {"betas": [0.9, 0.95], "eps": 1e-8}),
    "adamw_beta2_near_one": (
        ScheduleFreeAdamW,
        rules.schedule_free_adamw,
        2e-2,
        {"betas": [0.95, 0.9999], "eps": 1e-8},
    ),
    "sgd": (ScheduleFreeSGD, rules.schedule_free_sgd, 0.2, {"momentum": 0.9}),
    "sgd_little_momentum": (ScheduleFreeSGD, rules.schedule_free_sgd, 0.2, {"momentum": 0.3}),
}


def warmup_alone(step):
    return min(1.0, (step + 1) / (WARMUP + 1))


SCHEDULES = {
    "constant": (Constant(steps=STEPS, warmup_steps=WARMUP), warmup_alone),
    "cosine": (Cosine(steps=STEPS, warmup_steps=WARMUP, final=0.1), factor),
}


def by_reference(case, factor):
    """``y`` and ``x`` after all steps."""
    _, rule, peak, settings = KINDS[case]
    y = start()
    states = {name: {} for name in y}
    for step in range(STEPS):
        gradients = reference.clip(gradient(y, step), MAX_NORM)
        for name, p in y.items():
            decay = DECAY if p.ndim >= 2 else 0.0
            y[name] = rule(
                p, gradients[name], states[name], step + 1, peak * factor(step), weight_decay=decay, **settings
            )
    return y, {name: state["x"] for name, state in states.items()}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", KINDS)
def test_is_the_published_optimizer(case, schedule):
    kind, _, peak, settings = KINDS[case]
    in_mlx, in_python = SCHEDULES[schedule]
    factory = functools.partial(kind, learning_rate=peak, weight_decay=DECAY, **settings)
    optimizer = build_optimizer(factory, in_mlx)
    parameters = to_tree(start())
    optimizer.init(parameters)
    found = by_mlx(optimizer, parameters)
    y, x = by_reference(case, in_python)
    assert_same(to_flat(found), y, 1e-5)
    assert_same(to_flat(optimizer.evaluated(found)), x, 1e-5)
    with pytest.raises(AssertionError):
        assert_same(y, x, 1e-2)


@pytest.mark.parametrize("case", KINDS)
def test_references_agree_with_the_authors_package(case):
    """With learning rates that do not fall: where they do, the package weighs with the largest so far."""
    torch, schedulefree = pytest.importorskip("torch"), pytest.importorskip("schedulefree")
    _, _, peak, settings = KINDS[case]
    parameters = {name: torch.nn.Parameter(torch.from_numpy(p.copy())) for name, p in start().items()}
    groups = [
        {
            "params": [p for p in parameters.values() if (p.ndim >= 2) == decays],
            "weight_decay": DECAY if decays else 0.0,
        }
        for decays in (True, False)
    ]
    kind = {"adamw": schedulefree.AdamWScheduleFree, "sgd": schedulefree.SGDScheduleFree}[case.split("_")[0]]
    optimizer = kind(groups, lr=peak, **settings)
    optimizer.train()
    for step in range(STEPS):
        for name, g in gradient({name: p.detach().numpy() for name, p in parameters.items()}, step).items():
            parameters[name].grad = torch.from_numpy(g)
        torch.nn.utils.clip_grad_norm_(parameters.values(), MAX_NORM)
        for group in optimizer.param_groups:
            group["lr"] = peak * warmup_alone(step)
        optimizer.step()
    y, x = by_reference(case, warmup_alone)
    assert_same({name: p.detach().numpy() for name, p in parameters.items()}, y, 1e-10)
    optimizer.eval()
    assert_same({name: p.detach().numpy() for name, p in parameters.items()}, x, 1e-10)


def trained(optimizer, dtype=mx.float32, steps=5):
    parameters = to_tree(start(), dtype)
    optimizer.init(parameters)
    return by_mlx(optimizer, parameters, range(steps))


def bits(tree):
    return {name: (a.dtype, np.array(a.astype(mx.float32)).tobytes()) for name, a in tree_flatten(tree)}


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_evaluated_is_pure_and_of_the_same_structure(dtype):
    optimizer = ScheduleFreeAdamW(0.01)
    parameters = trained(optimizer, dtype)
    assert isinstance(optimizer, Averaging)
    before = bits(parameters), bits(optimizer.state)
    found = optimizer.evaluated(parameters)
    mx.eval(found)
    assert (bits(parameters), bits(optimizer.state)) == before
    shapes = [{name: (a.shape, a.dtype) for name, a in tree_flatten(tree)} for tree in (found, parameters)]
    assert list(shapes[0].items()) == list(shapes[1].items())
    assert found["dropout"] == {}
    assert bits(found) != bits(parameters)


def test_evaluated_can_be_traced_and_mapped():
    optimizer = ScheduleFreeSGD(0.1)
    parameters = trained(optimizer)
    state, expected = optimizer.state, to_flat(optimizer.evaluated(parameters))

    def of_one(state, parameters):
        optimizer.state = state
        return optimizer.evaluated(parameters)

    twice = [tree_map(lambda a: mx.stack([mx.zeros_like(a), a]), tree) for tree in (state, parameters)]
    second = tree_map(lambda a: a[1], mx.vmap(of_one)(*twice))
    for found in (mx.compile(of_one)(state, parameters), second):
        for name, value in to_flat(found).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-7)


def test_before_the_first_step_x_is_the_start():
    optimizer = ScheduleFreeAdamW(0.01)
    parameters = to_tree(start())
    optimizer.init(parameters)
    for name, value in to_flat(optimizer.evaluated(parameters)).items():
        np.testing.assert_allclose(value, start()[name], rtol=3e-7)


def test_of_several_groups_each_is_asked():
    """A group of a group is averaged; Muon's matrices are as they are, and so is everything of another optimizer's."""
    muon = MuonWithAdamW(0.02, adamw=functools.partial(ScheduleFreeAdamW, learning_rate=0.01), ns_precision="fp32")
    optimizer = MultiOptimizer([muon, AdamW(0.01)], [lambda path, _: "norm" not in path])
    parameters = trained(optimizer)
    found = to_flat(evaluated(optimizer, parameters))
    now = to_flat(parameters)
    assert list(found) == list(now)
    averaged = {"embed_tokens.weight", "lm_head.weight", "layers.0.q_proj.bias"}
    assert {name for name in now if not np.array_equal(found[name], now[name])} == averaged
    z = muon.optimizers[2].state["embed_tokens"]["weight"]["z"]
    expected = (now["embed_tokens.weight"] - 0.1 * np.array(z, np.float64)) / 0.9
    np.testing.assert_allclose(found["embed_tokens.weight"], expected, rtol=1e-5)


def test_of_other_optimizers_the_parameters_are_evaluated():
    optimizer = AdamW(0.01)
    parameters = trained(optimizer)
    assert not isinstance(optimizer, Averaging)
    assert evaluated(optimizer, parameters) is parameters


def test_without_init_z_starts_at_the_parameters():
    once, at_first_step = ScheduleFreeSGD(0.1), ScheduleFreeSGD(0.1)
    parameters = to_tree(start())
    gradients = to_tree(gradient(start(), 0))
    once.init(parameters)
    once.apply_gradients(gradients, parameters)
    at_first_step.apply_gradients(gradients, parameters)
    assert bits(once.state) == bits(at_first_step.state)


def test_a_long_run_still_weighs_each_step():
    """After 2**24 equal weights a plain fp32 sum would stay where it is."""
    optimizer = ScheduleFreeSGD(0.125)
    parameters = {"weight": mx.zeros(3)}
    optimizer.init(parameters)
    optimizer.state["weight_sum"] = mx.array(2.0**24 * 0.125**2)
    for _ in range(1000):
        optimizer.apply_gradients({"weight": mx.ones(3)}, parameters)
    total = float(optimizer.state["weight_sum"].item()) - float(optimizer.state["weight_sum_rest"].item())
    assert total == (2**24 + 1000) * 0.125**2


def test_a_schedule_that_begins_at_zero():
    def from_zero(step):
        return mx.minimum(step.astype(mx.float32) / 3, 1.0)

    optimizer = build_optimizer(functools.partial(ScheduleFreeAdamW, learning_rate=0.01), from_zero)
    found = to_flat(trained(optimizer))
    assert all(np.isfinite(value).all() for value in found.values())
    assert not np.array_equal(found["lm_head.weight"], start()["lm_head.weight"])


@pytest.mark.parametrize("kind", ["schedule_free_adamw", "schedule_free_sgd"])
def test_members_of_a_population_are_as_alone(kind):
    assert_members([f"optim={kind}", "schedule=constant"], tolerance=rounding(0.0))


@pytest.mark.parametrize(
    "own",
    [
        [["optim.betas=[0.9,0.95]"], ["optim.betas=[0.95,0.999]"]],
        [["optim.weight_decay=0.1"], ["optim.weight_decay=0.5"]],
    ],
)
def test_members_with_numbers_of_their_own(own):
    """Against Python's numbers, as `tests.population.test_step` has it: rounding differs."""
    assert_members(["optim=schedule_free_adamw", "schedule=constant"], own, tolerance=rounding(1e-6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScheduleFreeSGD(0.1, momentum=0), r"momentum=0 must lie in \(0, 1\)"),
        (lambda: ScheduleFreeSGD(0.1, momentum=1.0), r"momentum=1.0 must lie in \(0, 1\)"),
        (lambda: ScheduleFreeSGD(0.1, weight_decay=-1), "weight_decay=-1 must not be negative"),
        (lambda: ScheduleFreeAdamW(0.1, betas=[0.0, 0.9]), r"betas=\[0.0, 0.9\]'s first number must lie in \(0, 1\)"),
        (lambda: ScheduleFreeAdamW(0.1, betas=[0.9, 1.0]), r"betas=\[0.9, 1.0\] must be two numbers"),
        (lambda: ScheduleFreeAdamW(0.1, eps=0), "eps=0 must be above 0"),
        (lambda: ScheduleFreeAdamW(0.1, weight_decay=-1), "weight_decay=-1 must not be negative"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        make()
