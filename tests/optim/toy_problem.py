"""A small noisy problem with every shape that optimizers tell apart, and loops that solve it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import mlx.core as mx
import numpy as np
from mlx.optimizers import Optimizer, clip_grad_norm
from mlx.utils import tree_flatten, tree_unflatten

from tests.reference import optimizers as reference

SHAPES = {
    "embed_tokens.weight": (11, 6),
    "layers.0.norm.weight": (6,),
    "layers.0.q_proj.weight": (6, 6),
    "layers.0.q_proj.bias": (6,),
    "layers.0.conv1d.weight": (6, 3, 2),
    "layers.1.norm.weight": (6,),
    "layers.1.up_proj.weight": (9, 6),
    "layers.1.down_proj.weight": (6, 9),
    "layers.1.experts.weight": (3, 5, 4),
    "layers.2.norm.weight": (6,),
    "lm_head.weight": (11, 6),
}
FEW = ["embed_tokens.weight", "layers.0.norm.weight", "layers.1.up_proj.weight"]
"""For what compiles: on a CPU every kernel goes through a C++ compiler."""

STEPS = 50
WARMUP = 5
FINAL = 0.1
MAX_NORM = 12.0


def start() -> dict[str, np.ndarray]:
    """The first parameters: float64 numbers that float32 holds as they are."""
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=shape).astype(np.float32).astype(np.float64) for name, shape in SHAPES.items()}


def gradient(parameters: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
    """Of a quadratic with curvatures from 0.1 to 2, plus noise that depends on the step."""
    rng, noise = np.random.default_rng(2), np.random.default_rng([3, step])
    gradients = {}
    for name, p in (start() | parameters).items():  # always all of them, in one order: the same numbers for each
        target = rng.normal(size=p.shape) + 0.5 * noise.normal(size=p.shape)
        gradients[name] = rng.uniform(0.1, 2, p.shape) * (p - target)
    return {name: gradients[name] for name in parameters}


def factor(step: int) -> float:
    """The schedule: warmup and cosine, in plain Python."""
    if step < WARMUP:
        return (step + 1) / (WARMUP + 1)
    return FINAL + (1 - FINAL) * 0.5 * (1 + np.cos(np.pi * (step - WARMUP) / (STEPS - WARMUP)))


def to_tree(flat: dict[str, np.ndarray], dtype: mx.Dtype = mx.float32) -> dict:
    """A tree as `Module.trainable_parameters` gives it: modules without parameters are there, empty."""
    arrays = [(name, mx.array(value.astype(np.float32)).astype(dtype)) for name, value in flat.items()]
    tree = {"dropout": {}} | tree_unflatten(arrays)
    for layer in tree["layers"]:
        layer["dropout"] = {}
    return tree


def to_flat(tree: dict) -> dict[str, np.ndarray]:
    return {name: np.array(value.astype(mx.float32), np.float64) for name, value in tree_flatten(tree)}


def by_mlx(optimizer: Optimizer, parameters: dict, steps: range = range(STEPS)) -> dict:
    """The parameters after ``steps`` of an initialised optimizer, clipping on."""
    for step in steps:
        gradients, _ = clip_grad_norm(to_tree(gradient(to_flat(parameters), step)), MAX_NORM)
        parameters = optimizer.apply_gradients(gradients, parameters)
        mx.eval(parameters, optimizer.state)
    return parameters


Rule = Callable[..., np.ndarray]


def by_reference(rule_of: Callable[[str, np.ndarray], tuple[Rule, float, dict]]) -> dict[str, np.ndarray]:
    """The same in float64. ``rule_of(name, parameter)`` is a rule, its peak learning rate and its settings."""
    parameters = start()
    states: dict[str, dict] = {name: {} for name in parameters}
    for step in range(STEPS):
        gradients = reference.clip(gradient(parameters, step), MAX_NORM)
        for name, p in parameters.items():
            rule, peak, settings = rule_of(name, p)
            parameters[name] = rule(p, gradients[name], states[name], step + 1, peak * factor(step), **settings)
    return parameters


def distances(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    """How far apart two results are, relative to how far the expected one is from the start."""
    for name, p in start().items():
        yield name, float(np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name] - p))


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    far = {name: d for name, d in distances(found, expected) if not d < tolerance}
    assert not far, far
