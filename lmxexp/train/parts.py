"""How many parts a batch is computed in, and what is compiled for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lmxexp.interfaces import Stage

Shape = tuple[int, ...]

WHOLE, PART, UPDATE = "training step", "gradient of a part", "optimizer update"
CURVATURE = "estimate of the curvature"
"""The compiled functions of a step."""


def n_parts(stages: Sequence[Stage], n_micro: int) -> dict[Shape, int]:
    """In how many parts each shape of batch is computed.

    The fewest of equal size that are no larger than those of the last stage, of which there are ``n_micro``: so memory
    is as bounded as without a ramp, and a small batch is not computed in parts that are smaller still.

    Args:
        stages: of a ramp; the last is whole.
        n_micro: divides the whole batch's number of sequences.
    """
    most = stages[-1].tokens // n_micro
    return {
        stage.shape: next(
            n for n in range(1, stage.batch_size + 1) if stage.batch_size % n == 0 and stage.tokens <= n * most
        )
        for stage in stages
    }


def traces(parts: Mapping[Shape, int]) -> dict[str, int]:
    """How often each function is traced at most: once for each shape that it is called with.

    Args:
        parts: of `n_parts`.
    """
    split = {(rows // n, length) for (rows, length), n in parts.items() if n > 1}
    any_part = {(rows // n, length) for (rows, length), n in parts.items()}
    whole = sum(n == 1 for n in parts.values())
    return {WHOLE: whole, PART: len(split), UPDATE: min(len(split), 1), CURVATURE: len(any_part)}
