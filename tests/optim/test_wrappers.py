"""Cautious and Grams around our optimizers: against float64 references, and those against independent packages."""

import functools

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import lmxexp
from lmxexp.build import build
from lmxexp.interfaces import ConfigError
from lmxexp.optim.adamw import AdamW
from lmxexp.optim.averaging import Averaging
from lmxexp.optim.build import build_optimizer, learning_rates
from lmxexp.optim.cautious import cautious
from lmxexp.optim.grams import grams
from lmxexp.optim.lion import Lion
from lmxexp.optim.muon import MuonWithAdamW
from lmxexp.optim.prodigy import Prodigy
from lmxexp.optim.schedule_free import ScheduleFreeAdamW
from lmxexp.optim.sgd import SGD
from lmxexp.population.settings import NotMappable
from lmxexp.schedule.cosine import Cosine
from tests.optim.toy_problem import (
    MAX_NORM,
    STEPS,
    WARMUP,
    assert_same,
    by_mlx,
    by_reference,
    factor,
    gradient,
    start,
    to_flat,
    to_tree,
)
from tests.population.close import rounding
from tests.population.test_step import assert_members, population
from tests.reference import optimizers as reference
from tests.reference import schedule_free as rules

WRAPPERS = {"cautious": (cautious, rules.cautious), "grams": (grams, rules.grams)}
DECAY = 0.3

# name: (class, reference rule, peak learning rate, settings)
INNER = {
    "adamw": (AdamW, reference.adamw, 1e-2, {"betas": [0.9, 0.95], "eps": 1e-8}),
    "lion": (Lion, reference.lion, 1e-2, {"betas": [0.9, 0.99]}),
    "sgd": (SGD, reference.sgd, 2e-2, {"momentum": 0.9}),
}


def decay_of(inner, p):
    """Decoupled, of matrices; SGD's is an L2 penalty, and left out here."""
    return DECAY if p.ndim >= 2 and inner != "sgd" else 0.0


def expected(wrapper, inner):
    _, rule, peak, settings = INNER[inner]
    rule = rules.wrapped(WRAPPERS[wrapper][1], rule)
    return by_reference(lambda name, p: (rule, peak, settings | {"weight_decay": decay_of(inner, p)}))


def solve(factory):
    optimizer = build_optimizer(factory, Cosine(steps=STEPS, warmup_steps=WARMUP, final=0.1))
    parameters = to_tree(start())
    optimizer.init(parameters)
    return to_flat(by_mlx(optimizer, parameters))


def inner_factory(inner):
    kind, _, peak, settings = INNER[inner]
    decay = {} if inner == "sgd" else {"weight_decay": DECAY}
    return functools.partial(kind, learning_rate=peak, **settings, **decay)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_is_the_published_optimizer(wrapper, inner):
    found = solve(functools.partial(WRAPPERS[wrapper][0], inner=inner_factory(inner)))
    assert_same(found, expected(wrapper, inner), 1e-5)
    with pytest.raises(AssertionError):
        assert_same(solve(inner_factory(inner)), expected(wrapper, inner), 1e-2)


@pytest.mark.parametrize(("wrapper", "inner"), [("cautious", "lion"), ("grams", "adamw")])
def test_references_agree_with_independent_packages(wrapper, inner):
    torch, package = pytest.importorskip("torch"), pytest.importorskip("pytorch_optimizer")
    _, _, peak, settings = INNER[inner]
    parameters = {name: torch.nn.Parameter(torch.from_numpy(p.copy())) for name, p in start().items()}
    groups = [
        {
            "params": [p for p in parameters.values() if (p.ndim >= 2) == decays],
            "weight_decay": DECAY if decays else 0.0,
        }
        for decays in (True, False)
    ]
    if wrapper == "cautious":
        optimizer = package.Lion(groups, lr=peak, weight_decouple=True, cautious=True, **settings)
    else:
        optimizer = package.Grams(groups, lr=peak, weight_decouple=True, **settings)
    for step in range(STEPS):
        for name, g in gradient({name: p.detach().numpy() for name, p in parameters.items()}, step).items():
            parameters[name].grad = torch.from_numpy(g)
        torch.nn.utils.clip_grad_norm_(parameters.values(), MAX_NORM)
        for group in optimizer.param_groups:
            group["lr"] = peak * factor(step)
        optimizer.step()
    assert_same({name: p.detach().numpy() for name, p in parameters.items()}, expected(wrapper, inner), 1e-10)


def test_cautious_keeps_what_agrees_and_makes_up_for_the_rest():
    optimizer = cautious(functools.partial(SGD, 0.5, momentum=0.5))
    parameters = {"weight": mx.zeros(4)}
    for gradient_of in ([1.0, 1.0, -1.0, 1.0], [1.0, -0.1, -1.0, 0.0]):
        new = optimizer.apply_gradients({"weight": mx.array(gradient_of)}, parameters)
    # The momentum is now 1.5, 0.4, -1.5, 0.5; the first and the third agree: 4 / (2 + 1).
    np.testing.assert_allclose(np.array(new["weight"]), [-1.0, 0.0, 1.0, 0.0], rtol=1e-6)


def test_tiny_gradients_agree_too():
    """Their product with a change is nothing in fp32."""
    optimizer = cautious(functools.partial(Lion, 1e-9))
    new = optimizer.apply_gradients({"weight": mx.full((9,), 1e-37)}, {"weight": mx.zeros(9)})
    np.testing.assert_allclose(np.array(new["weight"]), -0.9e-9, rtol=1e-6)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_muon_s_changes_are_held_against_the_gradient_itself(wrapper):
    """And not against the orthogonal momentum, which is what its ``change`` is given."""
    adamw = functools.partial(AdamW, 0.01, weight_decay=0.0)
    make = functools.partial(MuonWithAdamW, 0.02, adamw=adamw, weight_decay=0.0, ns_precision="fp32")
    plain, wrapped = make(), WRAPPERS[wrapper][0](make)
    assert isinstance(wrapped, MuonWithAdamW)
    parameters = to_tree(start())
    for optimizer in (plain, wrapped):
        optimizer.init(parameters)
    disagreed = 0
    for step in range(5):
        flat = gradient(start(), step)
        moved, of_wrapped = (
            to_flat(o.apply_gradients(to_tree(flat), to_tree({n: np.zeros_like(p) for n, p in flat.items()})))
            for o in (plain, wrapped)
        )
        for name, change in moved.items():
            disagreed += int((change * flat[name] > 0).sum()) if "proj.weight" in name else 0
            want = -WRAPPERS[wrapper][1](-change, flat[name])
            np.testing.assert_allclose(of_wrapped[name], want, rtol=1e-5, atol=1e-9, err_msg=name)
    assert disagreed > 50


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_sgd_s_penalty_is_no_part_of_the_gradient(wrapper):
    optimizer = WRAPPERS[wrapper][0](functools.partial(SGD, 0.1, momentum=0.0, weight_decay=1.0))
    parameters = {"lm_head": {"weight": mx.full((2, 2), 5.0)}}
    gradients = {"lm_head": {"weight": mx.array([[-1.0, 1.0], [-1.0, 1.0]])}}
    new = np.array(optimizer.apply_gradients(gradients, parameters)["lm_head"]["weight"])
    want = [[5.0, 5 - 0.6 * 4 / 3]] * 2 if wrapper == "cautious" else [[5.4, 4.4]] * 2
    np.testing.assert_allclose(new, want, rtol=1e-6)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_prodigy_and_schedule_free_go_inside(wrapper):
    """With what is theirs beside ``change``."""
    prodigy = WRAPPERS[wrapper][0](functools.partial(Prodigy, d0=1e-2))
    parameters = to_tree(start())
    prodigy.init(parameters)
    by_mlx(prodigy, parameters, range(10))
    assert prodigy.state["d"].item() > 1e-2

    optimizer = WRAPPERS[wrapper][0](functools.partial(ScheduleFreeAdamW, 0.01, weight_decay=0.0))
    assert isinstance(optimizer, Averaging)
    optimizer.init(parameters)
    gradients = gradient(start(), 0)
    found = optimizer.apply_gradients(to_tree(gradients), parameters)
    # After one step x and z are the same, and so is y; a first change has the gradient's sign already.
    scale = (lambda g: g.size / (g.size + 1)) if wrapper == "cautious" else lambda g: 1.0
    for name, x in to_flat(optimizer.evaluated(found)).items():
        want = start()[name] - 0.01 * np.sign(gradients[name]) * scale(gradients[name])
        np.testing.assert_allclose(x, want, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_state_is_that_of_the_inner_optimizer(wrapper):
    def shapes(optimizer):
        optimizer.init(to_tree(start()))
        return {name: (a.shape, a.dtype) for name, a in tree_flatten(optimizer.state)}

    assert shapes(WRAPPERS[wrapper][0](functools.partial(AdamW, 0.01))) == shapes(AdamW(0.01))


def configured(*overrides):
    cfg = lmxexp.compose(overrides)
    return build_optimizer(build(cfg.optim), build(cfg.schedule))


def test_the_inner_optimizer_is_a_choice_with_settings_of_its_own():
    optimizer = configured("optim=cautious", "optim@optim.inner=lion", "optim.learning_rate=1e-4")
    assert isinstance(optimizer, Lion)
    assert type(optimizer).__name__ == "CautiousLion"
    factor = build(lmxexp.compose().schedule)(mx.array(0)).item()
    np.testing.assert_allclose(learning_rates(optimizer)["train/lr"].item(), 1e-4 * factor, rtol=1e-6)
    assert type(configured("optim=grams")).__name__ == "GramsAdamW"


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_members_of_a_population_are_as_alone(wrapper):
    own = [["seed=1"], ["seed=2", "optim.learning_rate=3e-3"], ["seed=3", "schedule.warmup_steps=2"]]
    assert_members([f"optim={wrapper}"], own, tolerance=rounding(0.0))


@pytest.mark.parametrize("inner", ["muon", "schedule_free_adamw"])
def test_members_with_other_inner_optimizers_are_as_alone(inner):
    assert_members(
        ["optim=cautious", f"optim@optim.inner={inner}"], [["seed=1"], ["seed=2"]], tolerance=rounding(0.0, 4e-3)
    )


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_members_with_numbers_of_their_own(wrapper):
    """Against Python's numbers, as `tests.population.test_step` has it: rounding differs."""
    own = [["optim.inner.betas=[0.9,0.95]"], ["optim.inner.betas=[0.8,0.999]", "optim.inner.weight_decay=0.3"]]
    assert_members([f"optim={wrapper}"], own, tolerance=rounding(1e-6))


def test_one_population_cannot_be_cautious_and_not():
    for other in (["optim=adamw"], ["optim=grams"]):
        with pytest.raises(NotMappable, match="are different algorithms"):
            population([], [["optim=cautious"], other])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.learning_rate=0"], r"optim\.learning_rate=0 must be above 0"),
        (
            ["optim.inner.learning_rate=1e-4"],
            r"optim\.inner\.learning_rate=0\.0001 is not learning_rate=0\.001, which it",
        ),
        (["optim.inner.betas=[0.9,2]"], r"optim\.inner\.betas=\[0\.9, 2\]"),
        (["optim@optim.inner=grams"], r"optim\.inner is cautious or grams itself"),
        (["optim.inner._target_=mlx.optimizers.Adam", "~optim.inner.weight_decay"], r"optim\.inner=mlx\.optimizers"),
    ],
)
def test_bad_settings(overrides, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        configured("optim=cautious", *overrides)
