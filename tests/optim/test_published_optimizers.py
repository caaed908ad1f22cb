"""Each optimizer does what its paper says: 50 steps against float64 references, and those against PyTorch."""

import functools

import mlx.core as mx
import numpy as np
import pytest

from lmxexp.optim.adafactor import Adafactor
from lmxexp.optim.adam import Adam
from lmxexp.optim.adamw import AdamW
from lmxexp.optim.build import build_optimizer
from lmxexp.optim.lion import Lion
from lmxexp.optim.muon import MuonWithAdamW, orthogonalize
from lmxexp.optim.sgd import SGD
from lmxexp.schedule.cosine import Cosine
from tests.optim.toy_problem import (
    MAX_NORM,
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
from tests.reference import optimizers as reference

ADAM = {"betas": [0.9, 0.95], "eps": 1e-8}
SLOW_ADAM = {"betas": [0.9, 0.9999], "eps": 1e-8}
FACTOR = {"eps1": 1e-30, "eps2": 1e-3, "clip_threshold": 1.0, "decay_rate": 0.8}
MUON = {"momentum": 0.95, "nesterov": True, "ns_steps": 5, "scale": "spectral"}

# name: (class, reference rule, peak learning rate, weight decay or None, settings)
SINGLE = {
    "adam": (Adam, reference.adamw, 1e-2, None, ADAM),
    "adam_beta2_near_one": (Adam, reference.adamw, 1e-2, None, SLOW_ADAM),
    "adam_betas_zero": (Adam, reference.adamw, 1e-2, None, {"betas": [0.0, 0.0], "eps": 1e-3}),
    "adamw": (AdamW, reference.adamw, 1e-2, 0.3, ADAM),
    "sgd": (SGD, reference.sgd, 5e-2, 0.3, {"momentum": 0.0}),
    "sgd_momentum": (SGD, reference.sgd, 2e-2, 0.3, {"momentum": 0.9}),
    "sgd_nesterov": (SGD, reference.sgd, 2e-2, 0.3, {"momentum": 0.9, "nesterov": True}),
    "lion": (Lion, reference.lion, 1e-2, 0.3, {"betas": [0.9, 0.99]}),
    "adafactor": (Adafactor, reference.adafactor, 1e-2, 0.3, FACTOR),
    "adafactor_beta1": (Adafactor, reference.adafactor, 1e-2, 0.3, FACTOR | {"beta1": 0.9}),
    "adafactor_unscaled": (Adafactor, reference.adafactor, 1e-2, 0.3, FACTOR | {"scale_parameter": False}),
}
MUONS = {
    "muon": MUON,
    "muon_no_nesterov": MUON | {"nesterov": False},
    "muon_match_rms_adamw": MUON | {"scale": "match_rms_adamw"},
}
MUON_LR, MUON_DECAY, ADAMW_LR, ADAMW_DECAY = 2e-2, 0.2, 1e-2, 0.3


def decay_of(p, weight_decay):
    """Matrices only."""
    return {} if weight_decay is None else {"weight_decay": weight_decay if p.ndim >= 2 else 0.0}


def single_reference(case):
    _, rule, peak, weight_decay, settings = SINGLE[case]
    return by_reference(lambda name, p: (rule, peak, settings | decay_of(p, weight_decay)))


def muon_reference(case):
    def rule_of(name, p):
        if p.ndim < 2 or name in ("embed_tokens.weight", "lm_head.weight"):
            return reference.adamw, ADAMW_LR, ADAM | decay_of(p, ADAMW_DECAY)
        return reference.muon, MUON_LR, MUONS[case] | {"weight_decay": MUON_DECAY, "stacked": "experts" in name}

    return by_reference(rule_of)


def solve(factory):
    optimizer = build_optimizer(factory, Cosine(steps=STEPS, warmup_steps=5, final=0.1))
    parameters = to_tree(start())
    optimizer.init(parameters)
    return to_flat(by_mlx(optimizer, parameters))


@pytest.mark.parametrize("case", SINGLE)
def test_is_the_published_optimizer(case):
    kind, _, peak, weight_decay, settings = SINGLE[case]
    decay = {} if weight_decay is None else {"weight_decay": weight_decay}
    found = solve(functools.partial(kind, learning_rate=peak, **settings, **decay))
    assert_same(found, single_reference(case), 1e-5)


def muon_factory(case, **settings):
    adamw = functools.partial(AdamW, learning_rate=ADAMW_LR, weight_decay=ADAMW_DECAY, **ADAM)
    return functools.partial(
        MuonWithAdamW, learning_rate=MUON_LR, weight_decay=MUON_DECAY, adamw=adamw, **MUONS[case], **settings
    )


@pytest.mark.parametrize("case", MUONS)
def test_muon_is_as_published_with_adamw_beside_it(case):
    assert_same(solve(muon_factory(case, ns_precision="fp32")), muon_reference(case), 1e-5)


def test_muon_in_bf16_is_near_fp32():
    # 8 bits through 15 products: a few per cent of the way that is gone, and not nothing.
    exact = muon_reference("muon")
    found = solve(muon_factory("muon", ns_precision="bf16"))
    assert_same(found, exact, 0.1)
    with pytest.raises(AssertionError):
        assert_same(found, exact, 1e-4)


def test_orthogonalize_brings_singular_values_near_one():
    matrix = np.random.default_rng(0).normal(size=(3, 20, 50))
    for stack in (matrix, matrix.swapaxes(1, 2)):
        found = np.array(orthogonalize(mx.array(stack.astype(np.float32)), 5, mx.float32))
        np.testing.assert_allclose(found, [reference.newton_schulz(m, 5) for m in stack], atol=1e-5)
        values = np.linalg.svd(found, compute_uv=False)
        assert values.min() > 0.65
        assert values.max() < 1.25


# --- the references themselves, against PyTorch in float64 ------------------------------------------------------------


def solve_by_torch(make_optimizers, names):
    """The parameters ``names`` after the same 50 steps; ``make_optimizers(parameters)`` is a list of optimizers."""
    torch = pytest.importorskip("torch")
    parameters = {name: torch.nn.Parameter(torch.from_numpy(p.copy())) for name, p in start().items()}
    optimizers = make_optimizers({name: parameters[name] for name in names})
    peaks = [group["lr"] for o in optimizers for group in o.param_groups]
    for step in range(STEPS):
        now = {name: p.detach().numpy() for name, p in parameters.items()}
        for name, g in gradient(now, step).items():
            parameters[name].grad = torch.from_numpy(g)
        torch.nn.utils.clip_grad_norm_(parameters.values(), MAX_NORM)
        for group, peak in zip((g for o in optimizers for g in o.param_groups), peaks, strict=True):
            group["lr"] = peak * factor(step)
        for optimizer in optimizers:
            optimizer.step()
    return {name: p.detach().numpy() for name, p in parameters.items()}


def groups(parameters, weight_decay):
    return [
        {"params": [p for p in parameters.values() if p.ndim >= 2], "weight_decay": weight_decay or 0.0},
        {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("case", [case for case in SINGLE if not case.startswith(("lion", "adafactor_"))])
def test_references_agree_with_torch(case):
    torch = pytest.importorskip("torch")
    _, _, peak, weight_decay, settings = SINGLE[case]

    def make(parameters):
        kinds = {
            "adam": lambda: torch.optim.Adam(groups(parameters, 0.0), lr=peak, **settings),
            "adamw": lambda: torch.optim.AdamW(groups(parameters, weight_decay), lr=peak, **settings),
            "sgd": lambda: torch.optim.SGD(groups(parameters, weight_decay), lr=peak, **settings),
            "adafactor": lambda: torch.optim.Adafactor(
                groups(parameters, weight_decay), lr=peak, beta2_decay=-0.8, eps=(1e-30, 1e-3), d=1.0
            ),
        }
        return [kinds[case.split("_")[0]]()]

    # All parameters, because the clipping couples them.
    assert_same(solve_by_torch(make, list(start())), single_reference(case), 1e-10)


@pytest.mark.parametrize("case", MUONS)
def test_muon_reference_agrees_with_torch(case, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())  # its own code, in float64
    settings = MUONS[case]
    hidden = ["layers.0.q_proj.weight", "layers.1.up_proj.weight", "layers.1.down_proj.weight"]

    def make(parameters):
        return [
            torch.optim.Muon(
                parameters.values(),
                lr=MUON_LR,
                weight_decay=MUON_DECAY,
                momentum=settings["momentum"],
                nesterov=settings["nesterov"],
                adjust_lr_fn="original" if settings["scale"] == "spectral" else settings["scale"],
            )
        ]

    found = solve_by_torch(make, hidden)

    def rule_of(name, p):
        if name not in hidden:
            return (lambda p, *_: p), 0.0, {}
        return reference.muon, MUON_LR, settings | {"weight_decay": MUON_DECAY}

    expected = by_reference(rule_of)
    for name in hidden:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-7)
