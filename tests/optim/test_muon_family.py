"""What followed Muon does what its papers say: 50 steps against float64 references."""

import functools

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxexp.interfaces import ConfigError
from lmxexp.optim import muon
from lmxexp.optim.adamw import AdamW
from lmxexp.optim.build import build_optimizer
from lmxexp.optim.dion import DionWithAdamW, orthonormal_columns
from lmxexp.optim.muon import Muon, of_each, orthogonalize
from lmxexp.optim.normuon import NorMuonWithAdamW
from lmxexp.optim.scion import Scion
from lmxexp.schedule.cosine import Cosine
from tests.optim.toy_problem import (
    STEPS,
    assert_same,
    by_mlx,
    by_reference,
    start,
    to_flat,
    to_tree,
)
from tests.population.close import on_a_gpu, rounding
from tests.population.test_step import assert_members
from tests.reference import muon_family
from tests.reference import optimizers as reference

ADAM = {"betas": [0.9, 0.95], "eps": 1e-8}
LR, DECAY, ADAMW_LR, ADAMW_DECAY = 5e-2, 0.2, 1e-2, 0.3

NORMUON = {
    "momentum": 0.95,
    "beta2": 0.9,
    "eps": 1e-10,
    "nesterov": False,
    "ns_steps": 5,
    "scale": "match_rms_adamw",
}
NORMUONS = {
    "paper": NORMUON,
    "authors_code": NORMUON | {"nesterov": True, "scale": "spectral"},
    "no_memory": NORMUON | {"momentum": 0.0, "beta2": 0.0},
}

SCION = {"momentum": 0.9, "radius": 2.0, "radius_head": 3.0, "radius_embedding": 1.5, "constrained": False}
SCIONS = {
    "unconstrained": SCION,
    "constrained": SCION | {"constrained": True},
    "embedding_as_head": SCION | {"radius_embedding": None},
    "no_momentum": SCION | {"momentum": 0.0},
}

DION = {"momentum": 0.95, "rank_fraction": 0.5, "eps": 1e-8}
# With a momentum of 0.5 the steps are unstable here: with LAPACK's decomposition in fp32, too, they are off by 2e-5.
DIONS = {"half_rank": DION, "rank_one": DION | {"rank_fraction": 0.01}, "less_momentum": DION | {"momentum": 0.8}}


def is_other(name, p):
    return p.ndim < 2 or name in ("embed_tokens.weight", "lm_head.weight")


def normuon_reference(case):
    def rule_of(name, p):
        if is_other(name, p):
            return reference.adamw, ADAMW_LR, ADAM | {"weight_decay": ADAMW_DECAY if p.ndim >= 2 else 0.0}
        return muon_family.normuon, LR, NORMUONS[case] | {"weight_decay": DECAY, "stacked": "experts" in name}

    return by_reference(rule_of)


def scion_settings(case, name, p):
    """Norm and radius of a parameter."""
    radii = SCIONS[case]
    if p.ndim < 2:
        return "rms", radii["radius"]
    if name == "lm_head.weight" or (name == "embed_tokens.weight" and radii["radius_embedding"] is None):
        return "sign_per_input", radii["radius_head"]
    return ("sign", radii["radius_embedding"]) if name == "embed_tokens.weight" else ("spectral", radii["radius"])


def scion_reference(case):
    def rule_of(name, p):
        norm, radius = scion_settings(case, name, p)
        settings = {key: SCIONS[case][key] for key in ("momentum", "constrained")}
        return muon_family.scion, LR, settings | {"norm": norm, "radius": radius, "stacked": "experts" in name}

    return by_reference(rule_of)


def dion_reference(case, start_from):
    def rule_of(name, p):
        if is_other(name, p):
            return reference.adamw, ADAMW_LR, ADAM | {"weight_decay": ADAMW_DECAY if p.ndim >= 2 else 0.0}
        q = start_from[name]
        settings = DIONS[case] | {"weight_decay": DECAY, "stacked": "experts" in name}
        return muon_family.dion, LR, settings | {"start": q.reshape(-1, *q.shape[-2:])}

    return by_reference(rule_of)


def solve(factory):
    optimizer = build_optimizer(factory, Cosine(steps=STEPS, warmup_steps=5, final=0.1))
    parameters = to_tree(start())
    optimizer.init(parameters)
    return to_flat(by_mlx(optimizer, parameters))


def normuon_factory(**settings):
    adamw = functools.partial(AdamW, learning_rate=ADAMW_LR, weight_decay=ADAMW_DECAY, **ADAM)
    return functools.partial(NorMuonWithAdamW, learning_rate=LR, weight_decay=DECAY, adamw=adamw, **settings)


@pytest.mark.parametrize("case", NORMUONS)
def test_normuon_is_as_published_with_adamw_beside_it(case):
    assert_same(solve(normuon_factory(ns_precision="fp32", **NORMUONS[case])), normuon_reference(case), 1e-5)


@pytest.mark.parametrize("case", SCIONS)
def test_scion_is_as_published(case):
    found = solve(functools.partial(Scion, learning_rate=LR, ns_precision="fp32", **SCIONS[case]))
    assert_same(found, scion_reference(case), 1e-5)


def dion_factory(**settings):
    adamw = functools.partial(AdamW, learning_rate=ADAMW_LR, weight_decay=ADAMW_DECAY, **ADAM)
    return functools.partial(DionWithAdamW, learning_rate=LR, weight_decay=DECAY, adamw=adamw, **settings)


@pytest.mark.parametrize("case", DIONS)
def test_dion_is_as_published_with_adamw_beside_it(case):
    optimizer = build_optimizer(dion_factory(**DIONS[case]), lambda step: mx.array(1.0))
    optimizer.init(to_tree(start()))
    states = [(path, a) for o in optimizer.optimizers[:2] for path, a in tree_flatten(o.state)]
    start_from = {path[:-2]: np.array(a, np.float64) for path, a in states if path.endswith(".q")}
    assert len(start_from) == 5
    assert_same(solve(dion_factory(**DIONS[case])), dion_reference(case, start_from), 1e-5)


def test_orthonormal_columns_are_those_of_a_qr_decomposition():
    rng = np.random.default_rng(0)
    graded = rng.normal(size=(3, 40, 16)) * np.geomspace(1, 1e-6, 16)
    for matrix in (rng.normal(size=(2, 3, 40, 16)), graded, rng.normal(size=(24, 24)), rng.normal(size=(9, 1))):
        found = np.array(orthonormal_columns(mx.array(matrix.astype(np.float32))), np.float64)
        products = np.abs(np.linalg.qr(matrix.astype(np.float32).astype(np.float64))[0].swapaxes(-1, -2) @ found)
        np.testing.assert_allclose(products, np.broadcast_to(np.eye(matrix.shape[-1]), products.shape), atol=1e-5)


def test_columns_that_depend_on_others_and_zeros_stay_finite():
    rng = np.random.default_rng(0)
    for matrix in (rng.normal(size=(40, 3)) @ rng.normal(size=(3, 8)), np.zeros((40, 8)), np.full((40, 8), 1e-30)):
        found = np.array(orthonormal_columns(mx.array(matrix.astype(np.float32))))
        assert np.linalg.norm(found, 2) < 1 + 1e-5


def test_dion_comes_to_the_strongest_singular_vectors():
    """Of a gradient that stays the same, all with one weight."""
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.normal(size=(12, 8)))
    v, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    matrix = (u * 2.0 ** -np.arange(8)) @ v.T
    optimizer = build_optimizer(dion_factory(momentum=0.99, rank_fraction=3 / 8), lambda step: mx.array(1.0))
    origin, gradients = ({"up": {"weight": mx.array(a.astype(np.float32))}} for a in (np.zeros((12, 8)), matrix))
    for _ in range(40):
        new = optimizer.apply_gradients(gradients, origin)
    expected = -LR * (12 / 8) ** 0.5 * u[:, :3] @ v[:, :3].T
    np.testing.assert_allclose(np.array(new["up"]["weight"]), expected, atol=1e-3 * LR)


def test_dion_wakes_up_after_gradients_of_zero():
    """As of matrices below one that starts at zero."""
    optimizer = build_optimizer(dion_factory(**DION), lambda step: mx.array(1.0))
    origin = {"up": {"weight": mx.zeros((9, 6))}}
    asleep = optimizer.apply_gradients(origin, origin)["up"]["weight"]
    assert mx.all(asleep == 0).item()
    gradients = {"up": {"weight": mx.random.normal((9, 6), key=mx.random.key(0))}}
    awake = optimizer.apply_gradients(gradients, {"up": {"weight": asleep}})["up"]["weight"]
    assert np.linalg.norm(np.array(awake), 2) > 0.5 * LR


@pytest.mark.parametrize("scale", ["match_rms_adamw", "spectral"])
def test_the_change_of_normuon_has_its_norm_whatever_came_before(scale):
    rows, columns = 9, 6
    settings = NORMUON | {"scale": scale, "ns_precision": "fp32"}
    optimizer = build_optimizer(normuon_factory(**settings), lambda step: mx.array(1.0))
    origin = {"up_proj": {"weight": mx.zeros((rows, columns))}}
    for i in range(3):
        gradients = {"up_proj": {"weight": mx.random.normal((rows, columns), key=mx.random.key(i)) * 10**i}}
        new = optimizer.apply_gradients(gradients, origin)
    change = np.array(new["up_proj"]["weight"], np.float64) / LR
    if scale == "match_rms_adamw":
        np.testing.assert_allclose(reference.rms(change), 0.2, rtol=1e-5)
    else:  # singular values from 0.7 to 1.2, times the root of rows / columns
        assert 0.65 < np.linalg.norm(change) / (columns * rows / columns) ** 0.5 < 1.25


def test_constrained_scion_stays_within_its_radii():
    """From the origin each step is the average of points of the ball."""
    settings = SCION | {"constrained": True, "ns_precision": "fp32"}
    optimizer = build_optimizer(functools.partial(Scion, learning_rate=0.5, **settings), lambda step: mx.array(1.0))
    parameters = to_tree({name: np.zeros_like(p) for name, p in start().items()})
    for i in range(20):
        gradients = to_tree({name: np.ones_like(p) + 0.1 * i for name, p in start().items()})
        parameters = optimizer.apply_gradients(gradients, parameters)
    found = to_flat(parameters)
    for name, radius in (("embed_tokens.weight", 1.5), ("lm_head.weight", 3.0 / 6)):
        np.testing.assert_allclose(np.abs(found[name]).max(), radius, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(reference.rms(found["layers.0.norm.weight"]), 2.0, rtol=1e-5)
    spectral = np.linalg.norm(found["layers.1.up_proj.weight"], 2) / (9 / 6) ** 0.5
    assert 2.0 * 0.65 < spectral < 2.0 * 1.25


def test_scion_gives_each_parameter_its_ball():
    optimizer = Scion(1e-3)
    optimizer.init(to_tree(start()))
    hidden, stacks, head, embedding, others = ({*dict(tree_flatten(o.state))} for o in optimizer.optimizers)
    assert {"layers.0.q_proj.weight.m", "layers.0.conv1d.weight.m", "layers.1.up_proj.weight.m"} <= hidden
    assert "layers.1.experts.weight.m" in stacks
    assert "lm_head.weight.m" in head
    assert "embed_tokens.weight.m" in embedding
    assert {"layers.0.norm.weight.m", "layers.0.q_proj.bias.m"} <= others
    # The state of a parameter is its momentum, and nothing of a step that is over.
    optimizer.apply_gradients(to_tree(start()), to_tree(start()))
    assert {path.rsplit(".", 1)[1] for path, _ in tree_flatten(optimizer.state)} == {"m", "step", "learning_rate"}


def test_normuon_keeps_one_number_for_each_row():
    optimizer = build_optimizer(normuon_factory(), lambda step: mx.array(1.0))
    optimizer.init(to_tree(start()))
    shapes = {path: a.shape for o in optimizer.optimizers[:2] for path, a in tree_flatten(o.state) if path[-2:] == ".v"}
    expected = {"q_proj": (6, 1), "conv1d": (6, 1), "up_proj": (9, 1), "down_proj": (6, 1), "experts": (3, 5, 1)}
    assert {path.split(".")[2]: shape for path, shape in shapes.items()} == expected


# --- one stack for all matrices of a shape ---------------------------------------------------------------------------

MATRICES = [(12, 20), (20, 12), (12, 20), (3, 12, 20), (20, 12), (12, 20), (3, 12, 20), (7, 7)]


def matrices():
    return [mx.random.normal(shape, key=mx.random.key(i)) for i, shape in enumerate(MATRICES)]


@pytest.mark.parametrize("largest", [muon.LARGEST_STACK, 2 * 240, 100], ids=["all", "pairs", "none"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["fp32", "bf16"])
def test_a_stack_is_made_orthogonal_as_its_matrices_are(dtype, largest, monkeypatch):
    monkeypatch.setattr(muon, "LARGEST_STACK", largest)
    for found, matrix in zip(of_each(lambda m: orthogonalize(m, 5, dtype), matrices()), matrices(), strict=True):
        expected = orthogonalize(matrix, 5, dtype)
        if not on_a_gpu():
            assert mx.array_equal(found, expected).item()
        else:  # its products of several matrices are summed in another order
            assert mx.allclose(found, expected, atol=1e-4 if dtype == mx.float32 else 0.1).item()


@pytest.mark.parametrize(
    ("largest", "stacks"),
    [
        (muon.LARGEST_STACK, [(3, 12, 20), (2, 20, 12), (2, 3, 12, 20), (7, 7)]),
        (2 * 240, [(2, 12, 20), (12, 20), (2, 20, 12), (3, 12, 20), (3, 12, 20), (7, 7)]),
    ],
)
def test_matrices_of_one_shape_are_one_stack_within_bounds(largest, stacks, monkeypatch):
    shapes = []

    def counted(matrix):
        shapes.append(matrix.shape)
        return matrix

    monkeypatch.setattr(muon, "LARGEST_STACK", largest)
    of_each(counted, matrices())
    assert shapes == stacks


def test_each_parameter_of_muon_moves_as_it_does_alone():
    names = [f"layers.{i}.{name}.weight" for i in range(3) for name in ("q_proj", "up_proj", "conv1d")]
    shapes = {"q_proj": (6, 6), "up_proj": (9, 6), "conv1d": (6, 3, 2)}
    rng = np.random.default_rng(0)

    def numbers():
        flat = {name: rng.normal(size=shapes[name.split(".")[2]]).astype(np.float32) for name in names}
        return {name: mx.array(a) for name, a in flat.items()}

    parameters = numbers()
    together, alone = Muon(0.02, ns_precision="fp32"), {name: Muon(0.02, ns_precision="fp32") for name in names}
    each = dict(parameters)
    for _ in range(5):
        gradients = numbers()
        parameters = together.apply_gradients(gradients, parameters)
        each = {name: alone[name].apply_gradients({name: gradients[name]}, {name: p})[name] for name, p in each.items()}
    for name in names:
        assert mx.allclose(parameters[name], each[name], rtol=0, atol=rounding(1e-6)).item(), name


# --- populations -----------------------------------------------------------------------------------------------------

ORTHOGONAL = 4e-3  # on a GPU Newton-Schulz is in bf16, whose numbers are 2^-8 apart
ROUNDING = rounding(0.0, ORTHOGONAL)


@pytest.mark.parametrize(
    "settings",
    [["optim=normuon"], ["optim=normuon", "optim.scale=spectral"], ["optim=scion"], ["optim=dion"]],
    ids=lambda settings: " ".join(settings),
)
@pytest.mark.parametrize("model", ["model.dropout=0.1", "ffn=moe"])
def test_members_of_a_population_are_what_they_are_alone(settings, model):
    assert_members([*settings, model], tolerance=ROUNDING)


def test_members_that_are_constrained():
    own = [["seed=1"], ["seed=2", "optim.learning_rate=1e-3"], ["seed=3", "schedule.warmup_steps=2"]]
    assert_members(["optim=scion", "optim.constrained=true", "optim.radius_embedding=2"], own, tolerance=ROUNDING)


@pytest.mark.parametrize(
    "own",
    [
        [["optim=normuon", "optim.momentum=0.9"], ["optim=normuon", "optim.beta2=0.999"]],
        [["optim=normuon", "optim.weight_decay=0.2"], ["optim=normuon", "optim.eps=1e-3"]],
        [["optim=dion", "optim.momentum=0.9"], ["optim=dion", "optim.weight_decay=0.2", "optim.eps=1e-3"]],
        [["optim=scion", "optim.radius=10"], ["optim=scion", "optim.momentum=0.5", "optim.radius_head=100"]],
    ],
    ids=lambda own: " ".join(o[-1] for o in own),
)
def test_numbers_of_their_own(own):
    """Rounded to fp32 at another place than Python's numbers."""
    assert_members([], own, tolerance=rounding(1e-6, ORTHOGONAL))


# --- bad settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: normuon_factory(momentum=1), r"optim.momentum=1 must lie in \[0, 1\)"),
        (lambda: normuon_factory(beta2=1), r"optim.beta2=1 must lie in \[0, 1\)"),
        (lambda: normuon_factory(eps=0), "optim.eps=0 must be above 0"),
        (lambda: normuon_factory(ns_steps=0), "optim.ns_steps=0 must be at least 1"),
        (lambda: normuon_factory(ns_precision="fp8"), "optim.ns_precision=fp8 is unknown"),
        (lambda: normuon_factory(scale="big"), "optim.scale=big is unknown: choose spectral or match_rms_adamw"),
        (lambda: dion_factory(momentum=1), r"optim.momentum=1 must lie in \[0, 1\)"),
        (lambda: dion_factory(rank_fraction=0), r"optim.rank_fraction=0 must lie in \(0, 1\]: try 0.25"),
        (lambda: dion_factory(rank_fraction=2), r"optim.rank_fraction=2 must lie in \(0, 1\]"),
        (lambda: dion_factory(eps=0), "optim.eps=0 must be above 0"),
        (lambda: functools.partial(Scion, learning_rate=0), "optim.learning_rate=0 must be above 0"),
        (lambda: functools.partial(Scion, learning_rate=1, momentum=1), r"optim.momentum=1 must lie in \[0, 1\)"),
        (lambda: functools.partial(Scion, learning_rate=1, radius=0), "optim.radius=0 must be above 0"),
        (lambda: functools.partial(Scion, learning_rate=1, radius_head=-1), "optim.radius_head=-1 must be above 0"),
        (
            lambda: functools.partial(Scion, learning_rate=1, radius_embedding=0),
            "optim.radius_embedding=0 must be above 0",
        ),
        (lambda: functools.partial(Scion, learning_rate=1, ns_steps=0), "optim.ns_steps=0 must be at least 1"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        build_optimizer(make(), lambda step: mx.array(1.0))
