"""Every mixer with every kind of every group that it meets in a layer: the two train together, or are refused in time.

Kinds that configure the same classes differ in numbers only, and the first of them trains for all; that a choice is not
ignored is checked for every pair. A configuration takes longer to compose than a small model to train, so kinds are
composed once and put together here as Hydra would.
"""

import copy
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lmxexp.cli import ignored
from lmxexp.cli.read_settings import ReadSettings
from lmxexp.cli.validate import check
from lmxexp.interfaces import Batch, ConfigError
from lmxexp.loss.cross_entropy import CrossEntropy
from tests.contracts.small_models import VOCAB, kinds, small_config, tokens

GROUPS = ("position", "norm", "ffn", "block", "qk_norm", "embedding")
SIZES = ("model.n_layers=1", "model.d_model=16", "model.n_heads=2", "model.d_ff=24")
LENGTH = 12


@pytest.fixture(autouse=True, scope="module")
def _search_each_setting_once():
    """To say which kinds would read an ignored setting takes all their files, for each of the messages here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ignored, "_who_could", cache(ignored._who_could))
        yield


@cache
def composed(i: int) -> DictConfig:
    """A configuration with the ``i``-th kind of every group."""
    return small_config(*SIZES, *(f"{group}={kinds(group)[i % len(kinds(group))]}" for group in GROUPS))


def node(group: str, kind: str) -> DictConfig:
    """A kind's part of a configuration, unresolved."""
    if group == "attention":
        return small_config(*SIZES, f"attention={kind}").model.attention
    return composed(kinds(group).index(kind)).model[group]


@cache
def classes(group: str, kind: str) -> tuple[str, ...]:
    """What a kind builds."""
    found, todo = [], [node(group, kind)]
    while todo:
        here = todo.pop()
        for key in here:
            if key == "_target_":
                found.append(here[key])
            elif not OmegaConf.is_interpolation(here, key) and isinstance(here[key], DictConfig):
                todo.append(here[key])
    return tuple(sorted(found))


def is_first_of_its_classes(group: str, kind: str) -> bool:
    return kind == next(k for k in kinds(group) if classes(group, k) == classes(group, kind))


@contextmanager
def pair(mixer: str, group: str, kind: str) -> Iterator[DictConfig]:
    """A llama of the two, to be read and not to be built."""
    cfg = small_config(*SIZES, f"attention={mixer}")
    before = cfg.model[group]
    cfg.model[group] = node(group, kind)
    try:
        yield cfg
    finally:
        cfg.model[group] = before


def refusal(cfg: DictConfig, *overrides: str) -> list[str]:
    """Why the command line would not take the overrides, without the checks of single settings."""
    return [message for _, message in ignored.find(cfg, list(overrides), ReadSettings(cfg))]


def losses(cfg: DictConfig, n_steps: int = 2) -> list[float]:
    """Before and after each of some steps on one batch."""
    cfg = copy.deepcopy(cfg)  # instantiate resolves interpolations in place
    mx.random.seed(0)
    model = instantiate(cfg.model.net, _convert_="all")(vocab_size=VOCAB)
    data = tokens(4, LENGTH + 1)
    batch = Batch(data[:, :-1], data[:, 1:])
    loss, optimizer = CrossEntropy(), mlx.optimizers.Adam(learning_rate=1e-2, bias_correction=True)
    gradient = nn.value_and_grad(model, lambda m: loss(m, batch)[0])
    found = []
    for _ in range(n_steps):
        value, g = gradient(model)
        optimizer.update(model, g)
        mx.eval(value, model.state, optimizer.state)
        found.append(value.item())
    return [*found, loss(model, batch)[0].item()]


def further(mixer: str) -> list[pytest.MarkDecorator]:
    return [] if is_first_of_its_classes("attention", mixer) else [pytest.mark.exhaustive]


@pytest.mark.parametrize("mixer", [pytest.param(m, marks=further(m)) for m in kinds("attention")])
def test_pairs_train_or_are_refused(mixer):
    wrong = {}
    for group, kind in ((g, k) for g in GROUPS for k in kinds(g)):
        with pair(mixer, group, kind) as cfg:
            problem = problem_of(cfg, mixer, group, kind)
        if problem:
            wrong[f"attention={mixer} {group}={kind}"] = problem
    assert not wrong


def problem_of(cfg: DictConfig, mixer: str, group: str, kind: str) -> str | None:
    """What is wrong with a pair; None: it trains, or is refused with a reason."""
    reasons = refusal(cfg, f"attention={mixer}", f"{group}={kind}")
    has_slot, filled = slot_of(cfg, group)
    if not has_slot and (filled or reasons):
        return None if len(reasons) == 1 else f"ignored, but not refused once: {reasons}"
    if reasons:
        return f"refused without need: {reasons}"
    if not (is_first_of_its_classes("attention", mixer) and is_first_of_its_classes(group, kind)):
        return None
    try:
        before, *_, after = losses(cfg)
    except ConfigError as error:
        return None if kind in str(error) and "\n" not in str(error) else f"refused without a clear reason: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None if math.isfinite(after) and after < before else f"the loss went from {before} to {after}"


def slot_of(cfg: DictConfig, group: str) -> tuple[bool, bool]:
    """Whether the mixer has a slot for the group, and whether the chosen kind would fill it."""
    mixer = OmegaConf.to_yaml(cfg.model.attention)
    if group == "position":
        return "${model.position.attention}" in mixer, cfg.model.position.attention is not None
    if group == "qk_norm":
        return "${model.qk_norm}" in mixer, not cfg.model.qk_norm._target_.endswith(".none")
    return True, True


@pytest.mark.parametrize("group", ["attention", *GROUPS])
def test_every_kind_passes_validation(group):
    for kind in kinds(group):
        cfg = small_config(*SIZES, f"attention={kind}") if group == "attention" else composed(kinds(group).index(kind))
        check(cfg)


def test_a_pair_is_put_together_as_hydra_does():
    for mixer, position in itertools.product(("mla", "sliding"), ("alibi", "none")):
        wanted = OmegaConf.to_container(small_config(*SIZES, f"attention={mixer}", f"position={position}").model)
        with pair(mixer, "position", position) as made:
            assert OmegaConf.to_container(made.model) == wanted
