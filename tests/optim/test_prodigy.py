"""Prodigy against a float64 reference, that against the authors' package, and the estimate d as a state of all."""

import functools

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxexp.interfaces import ConfigError
from lmxexp.optim.build import build_optimizer, learning_rates
from lmxexp.optim.muon import MuonWithAdamW
from lmxexp.optim.prodigy import Prodigy
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
SETTINGS = {"betas": [0.9, 0.999], "eps": 1e-8, "d0": 0.02}
CASES = {
    "plain": SETTINGS,
    "fast_means": SETTINGS | {"betas": [0.8, 0.9]},
    "d_coef": SETTINGS | {"d_coef": 0.5},
    "safeguard_warmup": SETTINGS | {"safeguard_warmup": True},
    "large_eps": SETTINGS | {"eps": 0.1},
}
SCHEDULE = Cosine(steps=STEPS, warmup_steps=WARMUP, final=0.1)


def by_reference(stored=np.float64, **settings):
    """The parameters and ``d`` after all steps; every parameter is a piece of one vector, kept as ``stored``."""
    sizes = {name: p.size for name, p in start().items()}
    ends = np.cumsum(list(sizes.values()))

    def apart(vector):
        pieces = np.split(vector, ends[:-1])
        return {name: piece.reshape(start()[name].shape) for name, piece in zip(sizes, pieces, strict=True)}

    def together(tree):
        return np.concatenate([tree[name].ravel() for name in sizes])

    decay = together({name: np.full(p.shape, DECAY if p.ndim >= 2 else 0.0) for name, p in start().items()})
    vector, state = together(start()), {}
    for step in range(STEPS):
        gradients = reference.clip(gradient(apart(vector), step), MAX_NORM)
        vector = rules.prodigy(vector, together(gradients), state, factor(step), decay=decay, **settings)
        vector = vector.astype(stored).astype(np.float64)
    return apart(vector), state["d"]


def solve(**settings):
    factory = functools.partial(Prodigy, learning_rate=1.0, weight_decay=DECAY, **settings)
    optimizer = build_optimizer(factory, SCHEDULE)
    parameters = to_tree(start())
    optimizer.init(parameters)
    return to_flat(by_mlx(optimizer, parameters)), optimizer.state["d"].item()


@pytest.mark.parametrize("case", CASES)
def test_is_the_published_optimizer(case):
    found, d = solve(**CASES[case])
    expected, expected_d = by_reference(**CASES[case])
    assert_same(found, expected, 1e-5)
    assert expected_d > 3 * CASES[case]["d0"]
    np.testing.assert_allclose(d, expected_d, rtol=1e-5)


@pytest.mark.parametrize("case", ["plain", "d_coef", "safeguard_warmup", "fast_means"])
def test_reference_agrees_with_the_authors_package(case):
    """With an eps that does not count: the package multiplies it by the new d, the paper by the old one."""
    torch, prodigyopt = pytest.importorskip("torch"), pytest.importorskip("prodigyopt")
    settings = CASES[case] | {"eps": 1e-30}
    parameters = {name: torch.nn.Parameter(torch.from_numpy(p.copy())) for name, p in start().items()}
    groups = [
        {
            "params": [p for p in parameters.values() if (p.ndim >= 2) == decays],
            "weight_decay": DECAY if decays else 0.0,
        }
        for decays in (True, False)
    ]
    optimizer = prodigyopt.Prodigy(groups, lr=1.0, **settings)
    for step in range(STEPS):
        for name, g in gradient({name: p.detach().numpy() for name, p in parameters.items()}, step).items():
            parameters[name].grad = torch.from_numpy(g)
        torch.nn.utils.clip_grad_norm_(parameters.values(), MAX_NORM)
        for group in optimizer.param_groups:
            group["lr"] = factor(step)
        optimizer.step()
    expected, d = by_reference(**settings)
    assert_same({name: p.detach().numpy() for name, p in parameters.items()}, expected, 1e-10)
    np.testing.assert_allclose(optimizer.param_groups[0]["d"], d, rtol=1e-10)


@pytest.mark.parametrize("case", ["plain", "safeguard_warmup"])
def test_from_the_first_estimate_of_the_paper(case):
    """The first changes are then a millionth, a few units in the last place of an fp32 parameter: the reference has to
    keep its parameters so too."""
    settings = CASES[case] | {"d0": 1e-6}
    found, d = solve(**settings)
    expected, expected_d = by_reference(np.float32, **settings)
    assert_same(found, expected, 1e-5)
    np.testing.assert_allclose(d, expected_d, rtol=1e-5)


def ready(**settings):
    optimizer = Prodigy(**settings)
    parameters = to_tree(start())
    optimizer.init(parameters)
    return optimizer, parameters


def test_d_is_one_scalar_of_the_state_and_never_shrinks():
    optimizer, parameters = ready(d0=1e-3)
    assert {name for name, a in tree_flatten(optimizer.state) if a.ndim == 0} == {"step", "learning_rate", "d", "r"}
    ds = [optimizer.state["d"].item()]
    for step in range(20):
        parameters = by_mlx(optimizer, parameters, range(step, step + 1))
        ds.append(optimizer.state["d"].item())
    assert ds == sorted(ds)
    assert ds[0] == np.float32(1e-3)
    assert ds[1] == ds[0]  # nothing has moved before the first step
    assert ds[-1] > 10 * ds[0]


def test_d_sees_all_parameters():
    """A gradient of one parameter moves the estimate, and with it another parameter's change."""
    changes = []
    for size in (1.0, 100.0):
        optimizer, parameters = ready(d0=1e-2, eps=1e-30)
        for step in range(5):
            gradients = to_tree(gradient(to_flat(parameters), step) | {"lm_head.weight": np.full((11, 6), size)})
            parameters = optimizer.apply_gradients(gradients, parameters)
        changes.append(to_flat(parameters)["layers.0.norm.weight"] - start()["layers.0.norm.weight"])
    assert np.abs(changes[0] - changes[1]).max() > 1e-3


def test_gradients_of_zero_leave_d_alone():
    optimizer, parameters = ready(d0=1e-2)
    zero = to_tree({name: np.zeros_like(p) for name, p in start().items()})
    found = to_flat(optimizer.apply_gradients(zero, parameters))
    assert optimizer.state["d"].item() == np.float32(1e-2)
    assert all(np.array_equal(found[name], p) for name, p in start().items())


def test_without_init_it_starts_at_the_parameters():
    first, second = Prodigy(d0=1e-2), Prodigy(d0=1e-2)
    parameters, gradients = to_tree(start()), to_tree(gradient(start(), 0))
    first.init(parameters)
    first.apply_gradients(gradients, parameters)
    second.apply_gradients(gradients, parameters)
    for (name, a), (_, b) in zip(tree_flatten(first.state), tree_flatten(second.state), strict=True):
        assert mx.array_equal(a, b).item(), name


def test_the_decay_and_the_logged_learning_rate():
    """The decay follows d; what is logged is what is set, by its schedule."""
    optimizer, parameters = ready(learning_rate=0.5, d0=1e-2, weight_decay=0.3)
    zero = to_tree({name: np.zeros_like(p) for name, p in start().items()})
    found = to_flat(optimizer.apply_gradients(zero, parameters))
    expected = start()["lm_head.weight"] * (1 - 0.5 * 1e-2 * 0.3)
    np.testing.assert_allclose(found["lm_head.weight"], expected, rtol=1e-6)
    assert learning_rates(optimizer)["train/lr"].item() == 0.5


def test_beside_another_optimizer_d_is_its_group_s():
    optimizer = MuonWithAdamW(0.02, adamw=functools.partial(Prodigy, d0=1e-2), ns_precision="fp32")
    parameters = to_tree(start())
    optimizer.init(parameters)
    by_mlx(optimizer, parameters, range(10))
    states = optimizer.state["states"]
    assert "d" not in states[0]
    assert states[2]["d"].item() > 1e-2


def test_members_of_a_population_are_as_alone():
    assert_members(["optim=prodigy", "optim.d0=1e-3"], tolerance=rounding(0.0))


@pytest.mark.parametrize(
    "own",
    [
        [["optim.betas=[0.9,0.95]"], ["optim.betas=[0.8,0.999]"]],
        [["optim.d0=1e-3"], ["optim.d0=1e-2"]],
        [["optim.d_coef=1"], ["optim.d_coef=2"]],
        [["optim.eps=1e-8"], ["optim.eps=1e-3"]],
        [["optim.weight_decay=0.1"], ["optim.weight_decay=0"]],
    ],
    ids=lambda own: " ".join(o[-1] for o in own),
)
def test_members_with_numbers_of_their_own(own):
    """Against Python's numbers, as `tests.population.test_step` has it: rounding differs."""
    assert_members(["optim=prodigy", "optim.d0=1e-3"], own, tolerance=rounding(1e-6))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"betas": [0.9, 1.0]}, r"betas=\[0.9, 1.0\] must be two numbers in \[0, 1\)"),
        ({"eps": 0}, "eps=0 must be above 0"),
        ({"d0": 0}, "d0=0 must be above 0"),
        ({"d_coef": -1}, "d_coef=-1 must be above 0"),
        ({"weight_decay": -1}, "weight_decay=-1 must not be negative"),
        ({"learning_rate": 0}, "learning_rate=0 must be above 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        Prodigy(**settings)
