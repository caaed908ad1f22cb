"""Steps and widths by which one arm meets a budget."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from omegaconf import DictConfig, OmegaConf

from lmxexp.cli.errors import is_config_error, refuse
from lmxexp.cli.read_settings import ReadSettings
from lmxexp.sweep.budget import Budgets
from lmxexp.sweep.solve import ENOUGH, ROUND, Found, Search

FITTING = {
    "params": ("d_ff", "d_model"),
    "flops": ("steps", "d_ff", "d_model"),
    "tokens": ("steps",),
    "time": ("steps",),
    "memory": ("d_ff", "d_model"),
}
"""What can be adjusted to meet a budget."""

KEYS = {"steps": "train.steps", "d_ff": "model.d_ff", "d_model": "model.d_model"}

_UNITS = {"params": "parameters", "flops": "training FLOPs", "tokens": "tokens", "time": "s", "memory": "GB"}

Adjusted = dict[str, int]


@dataclass(frozen=True)
class Adjuster:
    """Finds the whole numbers by which a configuration meets a target.

    Args:
        budgets: what is matched.
        how: ``steps``, ``d_ff``, or ``d_model`` with ``d_ff`` for what the heads' multiples leave over.
        tolerance: the residual that is refused. An arm within a quarter of it stays as it is.
    """

    budgets: Budgets
    how: str
    tolerance: float

    def __call__(self, cfg: DictConfig, fixed: frozenset[str], value: float, target: float) -> tuple[Adjusted, Found]:
        """Settings that change, by key, and what they give.

        Args:
            fixed: keys that the user has set for this arm: ``d_ff`` is no filler then.
            value: of ``cfg`` as it stands.

        Raises:
            ConfigError: nothing reads the setting, or no number comes close enough.
        """
        as_it_is = Found(0, value, value / target - 1)
        if self.how == "steps":
            adjusted, found = self._steps(cfg, value, target)
        elif abs(as_it_is.residual) <= self._enough:
            return {}, as_it_is
        elif self.how == "d_ff":
            adjusted, found = self._d_ff(cfg, target)
        else:
            adjusted, found = self._d_model(cfg, fixed, target)
        if abs(found.residual) >= abs(as_it_is.residual):
            adjusted, found = {}, as_it_is
        if abs(found.residual) >= self.tolerance:
            refuse(self._too_far(adjusted, found, target))
        return {key: number for key, number in adjusted.items() if OmegaConf.select(cfg, key) != number}, found

    @property
    def _enough(self) -> float:
        return ENOUGH * self.tolerance

    def _steps(self, cfg: DictConfig, value: float, target: float) -> tuple[Adjusted, Found]:
        """In proportion. With a ramp that is only near, as its stages are whole numbers of steps: again from there."""
        used, steps, found = self.budgets.by_steps(cfg), cfg.train.steps, []
        while True:
            steps = max(1, round(steps * target / value))
            if any(f.number == steps for f in found):
                break
            value = used(steps)
            found.append(Found(steps, value, value / target - 1))
        best = min(found, key=lambda f: abs(f.residual))
        return {KEYS["steps"]: best.number}, best

    def _d_ff(self, cfg: DictConfig, target: float) -> tuple[Adjusted, Found]:
        if not ReadSettings(cfg).is_read(KEYS["d_ff"]):
            refuse(f"nothing in this arm reads model.d_ff, which match.adjust=d_ff would change; {self._other_ways()}")
        adjusted, found = self._widths(cfg, target)
        if found is None:
            refuse(f"model.d_ff changes nothing in this arm, which has widths of its own; {self._other_ways()}")
        return adjusted, found

    def _d_model(self, cfg: DictConfig, fixed: frozenset[str], target: float) -> tuple[Adjusted, Found]:
        read = ReadSettings(cfg)
        if not read.is_read(KEYS["d_model"]):
            refuse(f"nothing in this arm reads model.d_model, which match.adjust=d_model would change; {_LEAVE_IT_OUT}")
        fills = read.is_read(KEYS["d_ff"]) and KEYS["d_ff"] not in fixed
        heads = cfg.model.n_heads if read.is_read("model.n_heads") else 1
        steps = list(dict.fromkeys(math.lcm(n, heads) for n in ROUND))
        if not fills:  # the heads' widths may not depend on the model's, or on a multiple of it
            steps += [n for n in ROUND if n not in steps]
        now, d_ff = cfg.model.d_model, cfg.model.d_ff if fills else None

        def wider(d_model: int) -> Adjusted:
            """A ``d_ff`` that is null follows by itself."""
            follows = {} if d_ff is None else {KEYS["d_ff"]: max(8, round(d_ff * d_model / now / 8) * 8)}
            return {KEYS["d_model"]: d_model, **follows}

        found = self._search(cfg, wider, target).run(now, steps)
        if found is None:
            refuse(f"no model.d_model near {now} fits this arm; {self._other_ways()}")
        adjusted = wider(found.number)
        if fills and abs(found.residual) > self._enough:
            widths, rest = self._widths(_changed(cfg, adjusted), target)
            if rest is not None and abs(rest.residual) < abs(found.residual):
                adjusted, found = adjusted | widths, rest
        return adjusted, found

    def _widths(self, cfg: DictConfig, target: float) -> tuple[Adjusted, Found | None]:
        """By ``d_ff``. Experts divide it among them and round, so that it comes in large steps: where these are too
        large, by the experts' own width, and by ``d_ff`` again where layers beside them read it. None: it does nothing.
        """
        experts = _free_widths_of_experts(cfg)
        adjusted: Adjusted = {}
        best: Found | None = None
        for keys in ([KEYS["d_ff"]], experts, [KEYS["d_ff"]]):
            if best is not None and abs(best.residual) < self.tolerance:
                break
            search = self._search(_changed(cfg, adjusted), partial(dict.fromkeys, keys), target)
            found = search.run(_usual_d_ff(cfg)) if keys else None
            if found is None or search.flat():
                continue
            if best is None or abs(found.residual) < abs(best.residual):
                adjusted, best = adjusted | dict.fromkeys(keys, found.number), found
        return adjusted, best

    def _search(self, cfg: DictConfig, change: Callable[[int], Adjusted], target: float) -> Search:
        def value(number: int) -> float | None:
            try:
                return self.budgets.of(_changed(cfg, change(number)), keep=False)
            except Exception as error:
                if not is_config_error(error):
                    raise
                return None  # heads that do not divide it, and the like

        return Search(value, target, self._enough)

    def _other_ways(self) -> str:
        ways = [f"match.adjust={way}" for way in FITTING[self.budgets.kind] if way != self.how]
        return f"use {' or '.join(ways)}"

    def _too_far(self, adjusted: Adjusted, found: Found, target: float) -> str:
        kind = self.budgets.kind
        nearest = " ".join(f"{key}={number}" for key, number in adjusted.items()) or "the arm as it is"
        mends = [f"a {'larger' if found.residual > 0 else 'smaller'} match.reference"]
        mends += [f"match.adjust={way}" for way in FITTING[kind] if way != self.how]
        mends += ["more train.steps for all"] if self.how == "steps" else []
        return (
            f"match={kind} cannot be met within match.tolerance={self.tolerance:g}: nearest is {nearest} with "
            f"{_figure(found.value)} {_UNITS[kind]}, {found.residual:+.2%} of {_figure(target)}; "
            f"try {', or '.join(mends)}"
        )


_LEAVE_IT_OUT = "leave it out, or match a budget that train.steps can meet"


def _usual_d_ff(cfg: DictConfig) -> int:
    return cfg.model.d_ff or round(8 / 3 * cfg.model.d_model)


def _free_widths_of_experts(cfg: DictConfig) -> list[str]:
    """The keys of experts' widths that are null: divided from ``d_ff``."""
    read = ReadSettings(cfg)
    return [path for path in read.paths if path.endswith(".d_expert") and read.raw(path) is None]


def _changed(cfg: DictConfig, adjusted: Adjusted) -> DictConfig:
    cfg = copy.deepcopy(cfg)
    for key, number in adjusted.items():
        OmegaConf.update(cfg, key, number)
    return cfg


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
