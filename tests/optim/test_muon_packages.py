"""The references of what followed Muon, against a package in float64."""

import functools

import numpy as np
import pytest

from tests.optim.test_muon_family import (
    ADAMW_DECAY,
    ADAMW_LR,
    DECAY,
    LR,
    NORMUONS,
    SCIONS,
    is_other,
    normuon_reference,
    scion_reference,
    scion_settings,
)
from tests.optim.toy_problem import MAX_NORM, SHAPES, STEPS, assert_same, factor, gradient, start


def pieces(name, a):
    """A parameter as PyTorch has it: a stack as its matrices, a convolution as ``(out, in, width)``."""
    if "experts" in name:
        return list(a)
    return [a.transpose(0, 2, 1)] if "conv" in name else [a]


def whole(name, parts):
    if "experts" in name:
        return np.stack(parts)
    return parts[0].transpose(0, 2, 1) if "conv" in name else parts[0]


def solve_by_package(make_optimizer):
    """The same 50 steps; ``make_optimizer(parameters)``: from lists of tensors by name."""
    torch = pytest.importorskip("torch")
    parameters = {
        name: [torch.nn.Parameter(torch.from_numpy(part.copy())) for part in pieces(name, p)]
        for name, p in start().items()
    }
    optimizer = make_optimizer(parameters)
    peaks = [group["lr"] for group in optimizer.param_groups]
    for step in range(STEPS):
        now = {name: whole(name, [part.detach().numpy() for part in parts]) for name, parts in parameters.items()}
        for name, g in gradient(now, step).items():
            for part, its in zip(parameters[name], pieces(name, g), strict=True):
                part.grad = torch.from_numpy(its.copy())
        torch.nn.utils.clip_grad_norm_([part for parts in parameters.values() for part in parts], MAX_NORM)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor(step)
        optimizer.step()
    return {name: whole(name, [part.detach().numpy() for part in parts]) for name, parts in parameters.items()}


def in_double_precision(monkeypatch, module):
    """The package's own Newton-Schulz iteration, which is bf16 otherwise."""
    torch = pytest.importorskip("torch")
    name = "zero_power_via_newton_schulz_5"
    monkeypatch.setattr(module, name, functools.partial(getattr(module, name), dtype=torch.float64))


# The package bounds the matrix's norm from below by 1e-7 where the published code adds 1e-7, which is what is left.
OF_PACKAGE = 1e-6


@pytest.mark.parametrize("case", NORMUONS)
def test_normuon_reference_agrees_with_a_package(case, monkeypatch):
    package = pytest.importorskip("pytorch_optimizer")
    from pytorch_optimizer.optimizer.muon import normuon

    in_double_precision(monkeypatch, normuon)
    settings = NORMUONS[case]

    def make(parameters):
        hidden = [part for name, parts in parameters.items() if not is_other(name, start()[name]) for part in parts]
        others = {name: parts for name, parts in parameters.items() if is_other(name, start()[name])}
        common = {"lr": ADAMW_LR, "use_muon": False, "betas": (0.9, 0.95), "eps": 1e-8}
        matrices = [part for name, parts in others.items() for part in parts if len(SHAPES[name]) > 1]
        vectors = [part for name, parts in others.items() for part in parts if len(SHAPES[name]) == 1]
        of_muon = {key: settings[key] for key in ("momentum", "beta2", "eps", "nesterov", "ns_steps")}
        scale = {"spectral": "preserve_norm", "match_rms_adamw": "match_rms"}[settings["scale"]]
        return package.NorMuon(
            [
                {"params": hidden, "lr": LR, "use_muon": True, "weight_decay": DECAY, "update_scale": scale, **of_muon},
                {"params": matrices, "weight_decay": ADAMW_DECAY, **common},
                {"params": vectors, "weight_decay": 0.0, **common},
            ],
            foreach=False,
        )

    assert_same(solve_by_package(make), normuon_reference(case), OF_PACKAGE)


@pytest.mark.parametrize("case", SCIONS)
def test_scion_reference_agrees_with_a_package(case, monkeypatch):
    package = pytest.importorskip("pytorch_optimizer")
    from pytorch_optimizer.optimizer import scion

    in_double_precision(monkeypatch, scion)
    kinds = {
        "spectral": (scion.LMONorm.AUTO, {}),
        "sign": (scion.LMONorm.SIGN, {"normalize": False}),
        "sign_per_input": (scion.LMONorm.SIGN, {"normalize": True}),
        "rms": (scion.LMONorm.BIAS, {}),
    }

    def make(parameters):
        groups = []
        for name, parts in parameters.items():
            norm, radius = scion_settings(case, name, start()[name])
            kind, arguments = kinds[norm]
            groups.append({"params": parts, "norm_type": kind, "norm_kwargs": arguments, "scale": radius})
        settings = SCIONS[case]
        return package.SCION(
            groups, lr=LR, momentum=1 - settings["momentum"], constraint=settings["constrained"], foreach=False
        )

    assert_same(solve_by_package(make), scion_reference(case), OF_PACKAGE)
