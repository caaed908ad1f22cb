"""Rotary angles for sequences longer than a model was made for: what fills the slot ``scaling`` of `RoPE`."""

import math

import numpy as np

from lmxexp.interfaces import ConfigError


class Scaling:
    """Chooses the angle by which each pair of elements turns, and how large turned queries and keys are.

    Args:
        factor: how many times longer sequences become; at least 1.
    """

    magnitude: float = 1.0
    """What the turned part of queries and of keys is multiplied by."""
    score_scale: float = 1.0
    """What a mixer that gives only a part of each head to be turned (``attention=mla``) multiplies its scores by."""

    def __init__(self, factor: float):
        if factor < 1.0:
            raise ConfigError(f"model.position.attention.scaling.factor={factor} must be at least 1")
        self.factor = factor

    def frequencies(self, dims: int, theta: float) -> list[float]:
        """Radians a position for each of the ``dims / 2`` pairs, computed in double precision.

        Args:
            dims: turned elements of a head.
            theta: base of the wavelengths.
        """
        raise NotImplementedError


class Linear(Scaling):
    """Position interpolation: every angle divided by ``factor``.

    Args:
        factor: how many times longer sequences become; at least 1.

    Source: Chen et al. 2023, "Extending Context Window of Large Language Models via Position Interpolation", eq. 4.
    """

    def frequencies(self, dims: int, theta: float) -> list[float]:
        return (_plain(dims, theta) / self.factor).tolist()


class NTK(Scaling):
    """NTK-aware interpolation: a larger base, so that the slowest pair turns ``factor`` times slower and the fastest
    as before.

    Args:
        factor: how many times longer sequences become; at least 1.

    Raises:
        ConfigError: a single pair, which would be the fastest and the slowest.

    Source: bloc97 2023, "NTK-Aware Scaled RoPE", as in Peng et al. 2023, "YaRN", definition 1.
    """

    def frequencies(self, dims: int, theta: float) -> list[float]:
        if dims < 4:
            raise ConfigError(f"position=rope_ntk needs two turned pairs or more in a head, but {dims} elements turn")
        return _plain(dims, theta * self.factor ** (dims / (dims - 2))).tolist()


class Llama3(Scaling):
    """Slow pairs are slowed down by ``factor``, fast ones are left alone, those between are blended.

    Args:
        factor: how many times longer sequences become; at least 1.
        original_len: positions of the sequences before.
        low_freq_factor: pairs that turn fewer times than this in ``original_len`` positions are slow.
        high_freq_factor: pairs that turn more often than this are fast.

    Raises:
        ConfigError: ``low_freq_factor`` not below ``high_freq_factor``.

    Source: Meta 2024, Llama 3.1 (the released code; "The Llama 3 Herd of Models", section 3.4.2, says what for).
    """

    def __init__(self, factor: float, original_len: int, low_freq_factor: float = 1.0, high_freq_factor: float = 4.0):
        super().__init__(factor)
        if not low_freq_factor < high_freq_factor:
            raise ConfigError(
                f"model.position.attention.scaling.low_freq_factor={low_freq_factor} must be less than "
                f"high_freq_factor={high_freq_factor}"
            )
        self.original_len = original_len
        self.low_freq_factor, self.high_freq_factor = low_freq_factor, high_freq_factor

    def frequencies(self, dims: int, theta: float) -> list[float]:
        plain = _plain(dims, theta)
        turns = self.original_len * plain / (2 * math.pi)
        fast = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0.0, 1.0)
        return (fast * plain + (1.0 - fast) * plain / self.factor).tolist()


class YaRN(Scaling):
    """Slow pairs are slowed down by ``factor``, fast ones are left alone, with a ramp over the pairs between; attention
    is sharpened by ``magnitude``.

    Args:
        factor: how many times longer sequences become; at least 1.
        original_len: positions of the sequences before.
        beta_fast: the ramp begins at the pair that turns this often in ``original_len`` positions.
        beta_slow: it ends at the pair that turns this often.
        mscale: share of the paper's sharpening that goes to the turned part of queries and keys; DeepSeek's. None: all
            of it, as in the paper, ``magnitude = 0.1 ln(factor) + 1``.
        mscale_all_dim: share that goes to all scores instead, for heads that are turned in part (`score_scale`). Set
            with ``mscale``: ``magnitude`` is then the ratio of the two.
        attention_factor: ``magnitude`` itself; None: as derived above.
        truncate: whether the ramp's ends are moved out to whole pairs.

    Raises:
        ConfigError: settings that contradict each other.

    Source: Peng et al. 2023, "YaRN: Efficient Context Window Extension of Large Language Models", definitions 2
        and 3, eq. 22. The ramp is linear in the pair's place, as in the authors' code and all released models; the
        paper's is linear in how often the pair turns. The two ``mscale``: DeepSeek-AI 2024, "DeepSeek-V2" (released
        code).
    """

    def __init__(
        self,
        factor: float,
        original_len: int,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        mscale: float | None = None,
        mscale_all_dim: float | None = None,
        attention_factor: float | None = None,
        truncate: bool = True,
    ):
        super().__init__(factor)
        where = "model.position.attention.scaling"
        if not beta_slow < beta_fast:
            raise ConfigError(f"{where}.beta_slow={beta_slow} must be less than beta_fast={beta_fast}")
        if (mscale is None) != (mscale_all_dim is None):
            raise ConfigError(
                f"{where}.mscale={mscale} and mscale_all_dim={mscale_all_dim} belong together: set both or neither"
            )
        self.original_len, self.beta_fast, self.beta_slow = original_len, beta_fast, beta_slow
        self.mscale, self.mscale_all_dim, self.attention_factor = mscale, mscale_all_dim, attention_factor
        self.truncate = truncate
        sharpening = lambda share: 0.1 * share * math.log(factor) + 1.0
        if mscale is None or mscale_all_dim is None:
            self.magnitude = sharpening(1.0)
        else:
            self.magnitude = sharpening(mscale) / sharpening(mscale_all_dim)
            self.score_scale = sharpening(mscale_all_dim) ** 2
        if attention_factor is not None:
            self.magnitude = attention_factor

    def frequencies(self, dims: int, theta: float) -> list[float]:
        plain = _plain(dims, theta)
        begin, end = self._pair(self.beta_fast, dims, theta), self._pair(self.beta_slow, dims, theta)
        if self.truncate:
            begin, end = math.floor(begin), math.ceil(end)
        # The bounds are the published code's: the upper one counts elements, not pairs, and so rarely binds.
        begin, end = max(begin, 0), min(end, dims - 1)
        width = end - begin if end != begin else 0.001
        slow = np.clip((np.arange(dims // 2) - begin) / width, 0.0, 1.0)
        return (slow * plain / self.factor + (1.0 - slow) * plain).tolist()

    def _pair(self, turns: float, dims: int, theta: float) -> float:
        """The place among the pairs, not a whole number, of one that turns ``turns`` times in ``original_len``."""
        return dims * math.log(self.original_len / (turns * 2 * math.pi)) / (2 * math.log(theta))


def _plain(dims: int, theta: float) -> np.ndarray:
    """Radians a position without scaling."""
    return theta ** (-np.arange(0, dims, 2, dtype=np.float64) / dims)
