"""Small models of every kind, found by looking into conf/, so that a new YAML is tested with no edit here."""

import copy
import re
from functools import cache
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from hydra.utils import instantiate
from mlx.utils import tree_map
from omegaconf import DictConfig, OmegaConf

from lmxexp import compose
from lmxexp.cli import conf
from lmxexp.model.norm.rmsnorm import RMSNorm

MODEL = Path(__file__).resolve().parents[2] / "conf" / "model"
VOCAB, LENGTH = 19, 24
SIZES = ["model.d_model=32", "model.n_heads=4", "model.n_kv_heads=2", "model.d_ff=48"]
# Knobs that bound how far a kind sees or how much it computes at once, wherever they stand in a model, and values that
# a sequence of LENGTH goes beyond.
SHORT = {"window": 5, "chunk": 5, "block": 5}


def kinds(group: str) -> list[str]:
    """The kinds of a group under conf/model, such as ``attention``."""
    return sorted(f.stem for f in (MODEL / group).glob("*.yaml") if not f.stem.startswith("_"))


# One that is told by the user where its model lies (`path: ???`) is no preset by itself.
PRESETS = sorted(f.stem for f in MODEL.glob("*.yaml") if not f.stem.startswith("_") and "???" not in f.read_text())
GROUPS = sorted(d.name for d in MODEL.iterdir() if d.is_dir() and d.name not in ("size", "init"))
# Every kind once, in a llama: [("attention", "gqa"), …].
EVERY_KIND = [(group, kind) for group in GROUPS for kind in kinds(group)]


def yaml_of(group: str, kind: str) -> str:
    """A kind's YAML with those that it starts from, as text."""
    return OmegaConf.to_yaml(conf.content(MODEL / group / f"{kind}.yaml"))


def one_of_each_class(group: str) -> list[str]:
    """The first kind of a group for each class that its kinds configure."""
    found: dict[tuple[str, ...], str] = {}
    for kind in kinds(group):
        found.setdefault(tuple(re.findall(r"_target_: (\S+)", yaml_of(group, kind)))[:1], kind)
    return list(found.values())


def choice(group: str, kind: str) -> str:
    """The override that chooses a kind."""
    return f"softcap@model.logit_softcap={kind}" if group == "softcap" else f"{group}={kind}"


def small_config(*overrides: str) -> DictConfig:
    """A composed configuration in small sizes; a copy, because building from one resolves it in place."""
    return copy.deepcopy(_composed(*overrides))


@cache
def _composed(*overrides: str) -> DictConfig:
    cfg = compose([*SIZES, f"train.seq_len={LENGTH}", *overrides])
    if not any(o.startswith("model.n_layers=") for o in overrides):
        # Every block that the pattern names stands in the stack at least once.
        pattern = cfg.model.net.pattern
        cfg.model.n_layers = max(2, sum(len(pattern[part] or []) for part in ("first", "repeat", "last")))
    _shorten(cfg.model)
    return cfg


def _shorten(node: DictConfig) -> None:
    for key in node:
        if OmegaConf.is_interpolation(node, key):
            continue
        if key in SHORT and isinstance(node[key], int):
            node[key] = SHORT[str(key)]
        elif isinstance(node[key], DictConfig):
            _shorten(node[key])


def small_model(*overrides: str, seed: int = 0) -> nn.Module:
    """A small model, every parameter random: at its initial values a model may look causal, or free of a norm's scale,
    only because a matrix is zero or a scale is one."""
    mx.random.seed(seed)
    model = instantiate(small_config(*overrides).model.net, _convert_="all")(vocab_size=VOCAB)
    randomise(model, seed)
    return model


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter random values: vectors around one, matrices with a gain of about one."""
    key = mx.random.key(seed)

    def draw(p: mx.array) -> mx.array:
        nonlocal key
        key, subkey = mx.random.split(key)
        noise = mx.random.normal(p.shape, key=subkey)
        return (1.0 + 0.3 * noise if p.ndim == 1 else noise * p.shape[-1] ** -0.5).astype(p.dtype)

    module.update(tree_map(draw, module.parameters()))
    for part in module.modules():
        for name in part:
            # What stands in an exponential, or is a step size: such that neither everything nor nothing is forgotten.
            if name.startswith("lambda_"):
                part[name] = part[name] - 1.0
            elif name == "dt_bias":
                part[name] = part[name] - 3.0
    for norm in module.modules():
        if isinstance(norm, RMSNorm) and "weight" in norm and norm.offset:
            norm.weight = norm.weight - norm.offset  # its scale is what shall be around one
    mx.eval(module.parameters())


def tokens(batch: int = 2, length: int = LENGTH, seed: int = 1) -> mx.array:
    return mx.random.randint(0, VOCAB, (batch, length), key=mx.random.key(seed))


def tolerance(model: nn.Module, x: mx.array) -> float:
    """How far two correct ways to compute the logits may be apart: 1e-5, or for an ill-conditioned model (a norm behind
    what is nearly zero) twice what it makes of a change of every parameter by its last bit."""
    kept = model.parameters()
    want = model(x)
    key = mx.random.key(7)

    def last_bit(p: mx.array) -> mx.array:
        nonlocal key
        key, subkey = mx.random.split(key)
        return p * (1.0 + 2.0**-23 * mx.where(mx.random.bernoulli(0.5, p.shape, key=subkey), 1.0, -1.0))

    model.update(tree_map(last_bit, kept))
    changed = model(x)
    mx.eval(changed)
    model.update(kept)
    return max(1e-5, 2 * relative_error(changed, want))


def relative_error(a: mx.array, b: mx.array) -> float:
    """Largest difference in units of the largest value of ``b``."""
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    return (mx.abs(a - b).max() / mx.abs(b).max()).item()
