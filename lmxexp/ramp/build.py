"""From a configuration to its ramp."""

from __future__ import annotations

import pkgutil

from omegaconf import DictConfig

from lmxexp.build import build
from lmxexp.interfaces import ConfigError, Ramp
from lmxexp.ramp.none import NoRamp


def ramp_of(cfg: DictConfig) -> Ramp:
    """The ramp that a configuration describes; `NoRamp` where none is chosen.

    Raises:
        ConfigError: settings that cannot work, or rows that mean nothing once they are cut.
    """
    ramp: Ramp | None = build(cfg.ramp) if cfg.get("ramp") else None  # runs from before there were ramps have no node
    if ramp is None:
        return NoRamp(cfg.train.batch_size, cfg.train.seq_len)
    if ramp.cuts_rows and not getattr(pkgutil.resolve_name(cfg.data._target_), "divisible", False):
        raise ConfigError(
            f"ramp={cfg.choice.ramp} cuts sequences into shorter ones, and data={cfg.choice.data} does not say, by an "
            "attribute divisible, that its sequences are running text, of which each piece is text again: take "
            "ramp=batch_size or ramp=none"
        )
    wanted, last = (cfg.train.batch_size, cfg.train.seq_len), ramp.stages[-1].shape
    if last != wanted:
        raise ConfigError(
            f"ramp={cfg.choice.ramp} ends at {last[0]} sequences of {last[1]} tokens, and the data comes in "
            f"{wanted[0]} of {wanted[1]}: leave ramp.batch_size and ramp.seq_len to follow train's"
        )
    return ramp
