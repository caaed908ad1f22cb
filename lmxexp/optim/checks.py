"""What every optimizer asks of its settings.

The messages start with the bare name of the setting; `lmxexp.optim.build.build_optimizer` puts its place in the
configuration in front.
"""

from __future__ import annotations

import math

from lmxexp.interfaces import ConfigError


def check_learning_rate(value: object) -> float:
    """``value`` as a float, if it is a positive, finite number. Raises: ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(
            f"learning_rate={value} must be a number, the peak learning rate: its course is what schedule=… chooses"
        )
    if not 0 < value < math.inf:
        raise ConfigError(f"learning_rate={value} must be above 0 and finite: try 1e-3")
    return float(value)


def check_betas(betas: list[float]) -> tuple[float, float]:
    """The two of them, if both lie in [0, 1). Raises: ConfigError."""
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(f"betas={list(betas)} must be two numbers in [0, 1): try [0.9, 0.95]")
    return betas[0], betas[1]


def check_fraction(name: str, value: float) -> float:
    """``value``, if it lies in [0, 1). Raises: ConfigError."""
    if not 0 <= value < 1:
        raise ConfigError(f"{name}={value} must lie in [0, 1): try 0.9")
    return value


def check_positive(name: str, value: float) -> float:
    """``value``, if it is above 0. Raises: ConfigError."""
    if not value > 0:
        raise ConfigError(f"{name}={value} must be above 0")
    return value


def check_weight_decay(value: float) -> float:
    """``value``, if it is not negative. Raises: ConfigError."""
    if not 0 <= value < math.inf:
        raise ConfigError(f"weight_decay={value} must not be negative: use 0 for none")
    return value
