"""SOAP, Shampoo and Kron: 50 steps against float64 references, those against pytorch_optimizer, and what must not be.

A matrix that is not square leaves SOAP's coordinates to chance as long as its statistics have not full rank. There is
nothing to compare then, and so its statistics start from the identity here, on both sides.
"""

import functools
import math

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxexp.interfaces import ConfigError
from lmxexp.optim.build import build_optimizer
from lmxexp.optim.kron import Kron, _key
from lmxexp.optim.shampoo import Shampoo
from lmxexp.optim.soap import SOAP
from lmxexp.population.settings import NotMappable
from lmxexp.schedule.cosine import Cosine
from tests.optim.toy_problem import (
    MAX_NORM,
    SHAPES,
    STEPS,
    assert_same,
    by_mlx,
    by_reference,
    factor,
    gradient,
    start,
    to_flat,
    to_tree,
)
from tests.population.close import on_a_gpu, rounding
from tests.population.test_step import assert_members, population
from tests.reference import optimizers as reference
from tests.reference import preconditioned

KINDS = {"soap": SOAP, "shampoo": Shampoo, "kron": Kron}
LEARNING_RATE, DECAY = 1e-2, 0.3
SETTINGS = {
    "soap": {"betas": [0.9, 0.95], "eps": 1e-8},
    "shampoo": {"betas": [0.9, 0.95], "eps": 1e-8, "damping": 1e-4},
    "kron": {"betas": [0.9, 0.95], "eps": 1e-8, "precondition_rate": 0.1, "damping": 1e-3, "max_rms": 1.1},
}
CASES = {
    "soap": {},
    "soap_now_and_then": {"every": 3},
    "soap_one_side": {"max_dim": 6},
    "soap_eigenvectors_that_turn_fast": {"betas": [0.9, 0.5]},
    "shampoo": {},
    "shampoo_little_damping": {"damping": 1e-6},
    "shampoo_now_and_then": {"every": 3},
    "shampoo_one_side": {"max_dim": 6},
    "kron": {},
    "kron_now_and_then": {"every": 3},
    "kron_diagonal": {"max_dim": 6},
    "kron_small_steps": {"max_rms": 0.2},
}
NEAR_IDENTITY = 1.0


def matrix_shape(name):
    shape = SHAPES[name]
    return shape if "experts" in name else (shape[0], math.prod(shape[1:]))


def turns(kind, every, max_dim):
    """By name, the remainders of the step at which the sides, or Kron's pair, are computed: those alike queue up."""
    queues, found = {}, {}
    for name in sorted(SHAPES):
        if len(SHAPES[name]) == 1:
            continue
        *leading, rows, columns = matrix_shape(name)
        sides = [n for n in (rows, columns) if n <= max_dim]
        alike = [(rows, columns)] if kind == "kron" else [(n, len(sides), *leading) for n in (rows, columns)]
        for i, queue in enumerate(alike):
            if kind == "kron" or queue[0] <= max_dim:
                queues.setdefault(queue, []).append((name, i))
    for queue in queues.values():
        at_once = math.ceil(len(queue) / every)
        for place, (name, i) in enumerate(queue):
            found.setdefault(name, {})[i] = place // at_once
    return {name: tuple(of_one.get(i) for i in range(2)) for name, of_one in found.items()}


def noise(name, t):
    shape = matrix_shape(name)
    return np.array(mx.random.normal(shape, key=_key(name, mx.array(t, mx.uint64))), np.float64)


def settings_of(case):
    kind = case.split("_")[0]
    return kind, {"every": 1, "max_dim": 10_000} | SETTINGS[kind] | CASES[case]


def expected(case, rate=LEARNING_RATE):
    kind, settings = settings_of(case)
    of_names = turns(kind, settings["every"], settings["max_dim"])

    def rule_of(name, p):
        own = settings | {"weight_decay": DECAY if p.ndim >= 2 else 0.0, "stacked": "experts" in name}
        own["turns"] = of_names.get(name, (None, None))
        if kind == "kron":
            own["noise"] = functools.partial(noise, name)
        if kind == "soap":
            own["start"] = NEAR_IDENTITY
        return getattr(preconditioned, kind), rate, own

    return by_reference(rule_of)


def built(case, rate=LEARNING_RATE):
    kind, settings = settings_of(case)
    settings["precondition_every"] = settings.pop("every")
    factory = functools.partial(KINDS[kind], learning_rate=rate, weight_decay=DECAY, **settings)
    optimizer = build_optimizer(factory, Cosine(steps=STEPS, warmup_steps=5, final=0.1))
    parameters = to_tree(start())
    optimizer.init(parameters)
    if kind == "soap":
        for _, state in optimizer.of_matrices():
            for side in {"left", "right"} & set(state):
                state[side] = state[side] + mx.eye(state[side].shape[-1]) * NEAR_IDENTITY
    return optimizer, parameters


@pytest.mark.parametrize("case", CASES)
def test_is_the_published_optimizer(case):
    assert_same(to_flat(by_mlx(*built(case))), expected(case), 1e-5)


# --- the references themselves, against pytorch_optimizer in float64 --------------------------------------------------

NAMES = ["embed_tokens.weight", "layers.0.q_proj.weight", "layers.1.up_proj.weight", "layers.1.down_proj.weight"]


def solve_by_torch(make, rate=lambda t: 1.0):
    """The parameters ``NAMES`` after the 50 steps; the others stay."""
    torch = pytest.importorskip("torch")
    parameters = {name: torch.nn.Parameter(torch.from_numpy(p.copy())) for name, p in start().items()}
    optimizer = make({name: parameters[name] for name in NAMES})
    for step in range(STEPS):
        gradients = reference.clip(gradient({n: p.detach().numpy() for n, p in parameters.items()}, step), MAX_NORM)
        for name in NAMES:
            parameters[name].grad = torch.from_numpy(gradients[name])
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * factor(step) * rate(step + 1)
        optimizer.step()
    return {name: parameters[name].detach().numpy() for name in NAMES}


def solve_by_reference(rule, **settings):
    def rule_of(name, p):
        if name not in NAMES:
            return (lambda p, *_: p), 0.0, {}
        own = {"noise": functools.partial(noise, name)} if rule is preconditioned.kron else {}
        return rule, LEARNING_RATE, settings | own

    return {name: p for name, p in by_reference(rule_of).items() if name in NAMES}


def assert_close(found, expected):
    for name in NAMES:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-9, err_msg=name)
        assert np.abs(found[name] - start()[name]).max() > 0.01


@pytest.fixture
def package(monkeypatch):
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("pytorch_optimizer")
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)  # it casts to float32 here and there
    return package


@pytest.mark.parametrize(("every", "max_dim"), [(1, 10_000), (3, 10_000), (1, 6)])
def test_soap_reference_agrees_with_pytorch_optimizer(package, every, max_dim):
    """It starts from the first gradient's eigenvectors and makes no step then: here it gets the identity instead. It
    adds ``eps`` before the bias correction, so that ``eps`` is nothing here, and decays after the step, so not here."""
    torch = pytest.importorskip("torch")
    betas = (0.9, 0.95)

    def make(parameters):
        optimizer = package.SOAP(
            parameters.values(), lr=1.0, betas=betas, eps=1e-30, weight_decay=0.0,
            precondition_frequency=every, max_precondition_dim=max_dim,
        )  # fmt: skip
        for group in optimizer.param_groups:
            group["step"] = 1
        for p in parameters.values():
            eyes = [torch.eye(n, dtype=torch.float64) if n <= max_dim else [] for n in p.shape]
            statistics = [eye * NEAR_IDENTITY if len(eye) else [] for eye in eyes]
            optimizer.state[p] |= {"exp_avg": torch.zeros_like(p.data), "exp_avg_sq": torch.zeros_like(p.data)}
            optimizer.state[p] |= {"GG": statistics, "Q": eyes, "precondition_frequency": every, "shampoo_beta": 0.95}
        return optimizer

    settings = {"betas": betas, "eps": 1e-30, "every": every, "max_dim": max_dim, "start": NEAR_IDENTITY}
    assert_close(solve_by_torch(make), solve_by_reference(preconditioned.soap, **settings))


def test_shampoo_reference_agrees_with_pytorch_optimizer(package):
    """Anil's, which averages what is preconditioned, and not the gradient: the two agree without an average. Its
    grafting does not correct the mean square's bias, which the learning rate makes up for here; its damping is an
    initial value."""

    def make(parameters):
        return package.ScalableShampoo(
            parameters.values(), lr=1.0, betas=(0.0, 0.95), nesterov=False, start_preconditioning_step=1,
            preconditioning_compute_steps=1, shape_interpretation=False, diagonal_eps=1e-30, matrix_eps=1e-2,
            graft_type=package.optimizer.shampoo.LayerWiseGrafting.RMSPROP, use_svd=True,
        )  # fmt: skip

    settings = {"betas": (0.0, 0.95), "eps": 1e-30, "damping": 0.0, "start": 1e-2}
    found = solve_by_torch(make, lambda t: (1 - 0.95**t) ** 0.5)
    assert_close(found, solve_by_reference(preconditioned.shampoo, **settings))


@pytest.mark.parametrize("max_dim", [8192, 6])
def test_kron_reference_agrees_with_pytorch_optimizer(package, monkeypatch, max_dim):
    """It has no damping, so that there is none here."""
    torch = pytest.importorskip("torch")
    drawn = iter([(name, t) for t in range(1, STEPS + 1) for name in NAMES])
    monkeypatch.setattr(torch, "randn_like", lambda *_, **__: torch.from_numpy(noise(*next(drawn))))

    def make(parameters):
        return package.Kron(
            parameters.values(), lr=1.0, momentum=0.9, weight_decay=DECAY, pre_conditioner_update_probability=1.0,
            max_size_triangular=max_dim, precondition_dtype=torch.float64, balance_prob=0.0,
        )  # fmt: skip

    settings = SETTINGS["kron"] | {"damping": 0.0, "max_dim": max_dim, "weight_decay": DECAY}
    assert_close(solve_by_torch(make), solve_by_reference(preconditioned.kron, **settings))


# --- what must not be -------------------------------------------------------------------------------------------------


# Roots of matrices of almost no rank magnify a GPU's other order of sums; what the step makes of them is compared.
ILL_CONDITIONED = ("_root", "_basis") if on_a_gpu() else ()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [1, 4])
def test_members_are_what_they_are_alone(kind, every):
    assert_members(
        [f"optim={kind}", f"optim.precondition_every={every}"], tolerance=rounding(0.0, 1e-3), but=ILL_CONDITIONED
    )


@pytest.mark.parametrize("kind", KINDS)
def test_members_have_numbers_of_their_own(kind):
    number, values = {"soap": ("eps", "1e-8 1e-3"), "shampoo": ("damping", "1e-2 1e-3"), "kron": ("damping", "0 1e-3")}[
        kind
    ]
    own = [[f"optim={kind}", f"optim.{number}={value}"] for value in values.split()]
    own[1] += ["optim.betas=[0.8,0.9]", "optim.weight_decay=0.5"]
    own = [[*o, "optim.precondition_every=1"] for o in own]
    assert_members([], own, tolerance=rounding(1e-5, 1e-3), but=ILL_CONDITIONED)


@pytest.mark.parametrize("kind", KINDS)
def test_members_refresh_alike(kind):
    own = [[f"optim={kind}", f"optim.precondition_every={every}"] for every in (1, 2)]
    with pytest.raises(NotMappable, match=r"optim\.refresh is"):
        population([], own)


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_that_are_no_matrices_and_long_axes_are_adamw_s(kind):
    optimizer = KINDS[kind](1e-2, max_dim=5)
    parameters = to_tree(start())
    parameters["layers"][0]["A_log"] = mx.ones((3, 4))
    optimizer.init(parameters)
    sides = {path for path, _ in tree_flatten(optimizer.state) if path.endswith((".left", ".right"))}
    assert sides == {f"layers.1.experts.weight.{side}" for side in ("left", "right")}
    assert {"layers.0.A_log.v", "layers.0.q_proj.weight.v"} <= dict(tree_flatten(optimizer.state)).keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-15, 1.0, 1e8])
def test_rank_one_zero_and_tiny_gradients(kind, size):
    """Nothing stops being finite; bases stay orthonormal, roots and factors positive."""
    optimizer = KINDS[kind](1e-3, weight_decay=0.0, precondition_every=1)
    rng = np.random.default_rng(0)
    parameters = {"a": {"weight": mx.zeros((12, 20))}, "b": {"weight": mx.zeros((20, 12))}}
    optimizer.init(parameters)
    u, v = rng.normal(size=(12, 1)), rng.normal(size=(1, 20))
    u[:4] = 0  # units that are dead
    for step in range(60):
        g = mx.array((size * rng.normal() * u @ v).astype(np.float32)) if step >= 5 else mx.zeros((12, 20))
        parameters = optimizer.apply_gradients({"a": {"weight": g}, "b": {"weight": g.T}}, parameters)
        mx.eval(parameters, optimizer.state)
    for path, a in tree_flatten([parameters, optimizer.state]):
        assert mx.isfinite(a).all().item(), path
    moved = mx.abs(parameters["a"]["weight"][4:]).max().item()
    assert moved > (1e-4 if size >= 1 else 0)  # a size far below eps moves nothing much
    for _, state in optimizer.of_matrices():
        for side in ("left", "right"):
            if kind == "soap":
                q = np.array(state[f"{side}_basis"], np.float64)
                np.testing.assert_allclose(q.T @ q, np.eye(len(q)), atol=1e-5)
            if kind == "shampoo":
                assert np.linalg.eigvalsh(np.array(state[f"{side}_root"], np.float64)).min() > 0
            if kind == "kron":
                assert np.diag(np.array(state[side])).min() > 0


@pytest.mark.parametrize("kind", ["soap", "shampoo"])
def test_what_is_not_finite_is_not_taken_for_a_basis_or_a_root(kind):
    optimizer = KINDS[kind](1e-3, precondition_every=1)
    parameters = {"a": {"weight": mx.zeros((4, 5))}}
    optimizer.init(parameters)
    optimizer.apply_gradients({"a": {"weight": mx.random.normal((4, 5), key=mx.random.key(0))}}, parameters)
    made = [f"{side}_{optimizer.made_of_it}" for side in ("left", "right")]
    before = {name: mx.array(optimizer.state["a"]["weight"][name]) for name in made}
    optimizer.apply_gradients({"a": {"weight": mx.full((4, 5), math.nan)}}, parameters)
    for name in made:
        assert mx.array_equal(optimizer.state["a"]["weight"][name], before[name]).item()
        assert not mx.array_equal(before[name], mx.eye(before[name].shape[0])).item()


def test_soap_finds_the_eigenvectors():
    """Of gradients with a covariance that stays, by more iterations from the identity."""
    rng = np.random.default_rng(0)
    turned = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    optimizer = SOAP(0.0 + 1e-3, betas=[0.9, 0.99], precondition_every=1)
    parameters = {"a": {"weight": mx.zeros((8, 30))}}
    optimizer.init(parameters)
    for _ in range(400):
        g = turned @ (2.0 ** -np.arange(8)[:, None] * rng.normal(size=(8, 30)))
        parameters = optimizer.apply_gradients({"a": {"weight": mx.array(g.astype(np.float32))}}, parameters)
        mx.eval(parameters, optimizer.state)
    state = optimizer.state["a"]["weight"]
    q, statistics = (np.array(state[name], np.float64) for name in ("left_basis", "left"))
    in_basis = q.T @ statistics @ q
    size = np.sqrt(np.outer(np.diag(in_basis), np.diag(in_basis)))
    assert np.abs(in_basis / size - np.eye(8)).max() < 0.1
    assert np.all(np.diff(np.diag(in_basis)) < 0)


def test_kron_whitens():
    """Its preconditioner makes the mean gradient's second moment the identity, up to the noise of 40 steps."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(6, 6)) + 2 * np.eye(6)
    optimizer = Kron(1e-6, betas=[0.0, 0.95], weight_decay=0.0, max_rms=1e9)
    parameters = {"a": {"weight": mx.zeros((6, 40))}}
    optimizer.init(parameters)
    for _ in range(600):
        g = 0.01 * mix @ rng.normal(size=(6, 40))
        parameters = optimizer.apply_gradients({"a": {"weight": mx.array(g.astype(np.float32))}}, parameters)
        mx.eval(parameters, optimizer.state)
    left, right = (np.array(optimizer.state["a"]["weight"][side], np.float64) for side in ("left", "right"))
    total = np.zeros((6, 6))
    for _ in range(50):
        white = left.T @ left @ (0.01 * mix @ rng.normal(size=(6, 40))) @ right.T @ right
        total += white @ white.T / (50 * 40)
    values = np.linalg.eigvalsh(total)
    assert values.min() > 0.5
    assert values.max() < 2


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        *[
            (kind, {"precondition_every": 0}, "precondition_every=0 must be a whole number of at least 1")
            for kind in KINDS
        ],
        *[(kind, {"precondition_every": 1.5}, "precondition_every=1.5 must be a whole number") for kind in KINDS],
        *[(kind, {"max_dim": 0}, "max_dim=0 must be a whole number of at least 1") for kind in KINDS],
        *[(kind, {"betas": [0.9, 1.0]}, r"betas=\[0.9, 1.0\] must be two numbers in \[0, 1\)") for kind in KINDS],
        *[(kind, {"eps": 0}, "eps=0 must be above 0") for kind in KINDS],
        *[(kind, {"weight_decay": -1}, "weight_decay=-1 must not be negative") for kind in KINDS],
        ("shampoo", {"damping": 1e-9}, r"damping=1e-09 must lie in \[1e-07, 1\)"),
        ("shampoo", {"damping": 1}, r"damping=1 must lie in \[1e-07, 1\)"),
        ("kron", {"damping": -1e-9}, "damping=-1e-09 must not be negative"),
        ("kron", {"precondition_rate": 1}, r"precondition_rate=1 must lie in \(0, 1\)"),
        ("kron", {"max_rms": 0}, "max_rms=0 must be above 0"),
    ],
)
def test_bad_settings(kind, settings, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        KINDS[kind](1e-3, **settings)
