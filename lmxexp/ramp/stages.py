"""The stages of a ramp: which sizes, from which step on, and what that makes of tokens and FLOPs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from lmxexp.interfaces import ConfigError, Ramp, Stage


def doubling(key: str, full: int, start: int | None) -> list[int]:
    """``start``, twice as much, and so on to ``full``.

    Args:
        key: what is ramped, ``batch_size`` or ``seq_len``.
        full: its value in ``train``.
        start: None: an eighth of ``full``.

    Raises:
        ConfigError: ``start`` is not ``full`` divided by 2, 4, 8 or another power of two.
    """
    possible, size = [], full
    while size % 2 == 0:
        size //= 2
        possible.append(size)
    if start is None and full % 8 == 0:
        start = full // 8
    if start not in possible:
        given = "null, an eighth," if start is None else start
        mend = f"take {' or '.join(map(str, possible))}" if possible else f"make train.{key} even"
        raise ConfigError(f"ramp.start={given} must be train.{key}={full} divided by a power of two: {mend}")
    return [*reversed(possible[: possible.index(start) + 1]), full]


def starts(until: float, steps: int, multiples: Sequence[int]) -> list[int]:
    """The step at which each stage begins, and then the first at full size.

    The stages share ``until * steps`` steps equally. A batch that doubles after equal numbers of steps grows linearly
    with the tokens seen, as GPT-3's did.

    Args:
        until: where the last stage ends, as a fraction of ``steps``.
        steps: optimizer steps of the run.
        multiples: for each stage but that of full size, what its length is a multiple of; the first is the greatest.

    Raises:
        ConfigError: ``until`` is no such fraction, or there are too few steps for the stages.
    """
    given = f"ramp.until={until} of train.steps={steps}"
    if not 0 < until < 1:
        raise ConfigError(f"ramp.until={until} must lie between 0 and 1, both excluded: it is a part of train.steps")
    end, n = round(until * steps), len(multiples)
    if end < n * multiples[0]:
        raise ConfigError(
            f"{given} is {end} steps, too few for the ramp's stages ({n}), which take {multiples[0]} or more each: "
            "raise ramp.until, train.steps or ramp.start"
        )
    found = [0]
    for i, multiple in enumerate(multiples, start=1):
        found.append(found[-1] + multiple * max(1, round((end * i / n - found[-1]) / multiple)))
    if found[-1] >= steps:
        raise ConfigError(f"{given} leaves no step at full size: lower ramp.until, or raise train.steps")
    return found


def place_of(stages: Sequence[Stage], step: int) -> int:
    """Which of the stages a step belongs to; ``step`` counts from 0."""
    return bisect_right(stages, step, key=lambda stage: stage.start) - 1


def stage_of(stages: Sequence[Stage], step: int) -> Stage:
    """The stage that a step belongs to; ``step`` counts from 0."""
    return stages[place_of(stages, step)]


def steps_of(stages: Sequence[Stage], steps: int) -> dict[Stage, int]:
    """How many of the first ``steps`` steps each stage has; a stage that has none is left out."""
    ends = [*(later.start for _, later in pairwise(stages)), steps]
    counts = {stage: min(end, steps) - stage.start for stage, end in zip(stages, ends, strict=True)}
    return {stage: n for stage, n in counts.items() if n > 0}


def tokens_in(steps: Mapping[Stage, int]) -> int:
    """Training tokens of so many steps of each stage."""
    return sum(n * stage.tokens for stage, n in steps.items())


def flops_in(steps: Mapping[Stage, int], per_token: Callable[[int], int]) -> int:
    """Training FLOPs of so many steps of each stage.

    Args:
        per_token: by the length of the sequences, `lmxexp.model.language_model.LanguageModel.flops_per_token`.
    """
    return sum(n * stage.tokens * per_token(stage.seq_len) for stage, n in steps.items())


def say(ramp: Ramp) -> str:
    """``batch size 4 → 8 → 16 at steps 25, 75``; empty where nothing grows."""
    if ramp.grows is None:
        return ""
    name = {"batch_size": "batch size", "seq_len": "sequence length"}[ramp.grows]
    sizes = " → ".join(str(getattr(stage, ramp.grows)) for stage in ramp.stages)
    begins = [str(stage.start) for stage in ramp.stages[1:]]
    return f"{name} {sizes} at {'steps' if len(begins) > 1 else 'step'} {', '.join(begins)}"
