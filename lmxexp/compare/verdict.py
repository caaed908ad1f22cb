"""Better, worse, or not distinguishable: what may be said of a difference, and why not more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmxexp.compare.mismatch import TOLERANCE, Mismatch
from lmxexp.compare.statistics import ALPHA, Difference

Word = Literal["better", "worse", "not distinguishable", "not comparable", "no result"]


@dataclass(frozen=True)
class Verdict:
    """What is said of an arm against the baseline."""

    word: Word
    reason: str = ""
    """Why it is not more than that."""
    failures: str = ""
    """``2 of 3 diverged``: how many of its seeds, or of the baseline's, the verdict does not rest on."""

    @property
    def text(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.word}{reason}{f' ({self.failures})' if self.failures else ''}"


def judge(
    difference: Difference,
    p_holm: float,
    mismatch: Mismatch | None,
    *,
    higher: bool,
    n_arms: int = 1,
    failures: str = "",
) -> Verdict:
    """The verdict on a difference.

    It is ``better`` or ``worse`` if the p value after Holm's correction is below 5 % *and* the end of the 95 %
    interval that is nearer to 0 exceeds what a budget mismatch in favour of the better arm could explain by itself.

    Args:
        higher: whether more of the metric is better.
        n_arms: compared with the baseline, for the words.
        failures: goes into the verdict.
    """
    if p_holm >= ALPHA:
        lost = f"p = {difference.p:.2g} alone, {p_holm:.2g} among {n_arms} arms" if difference.p < ALPHA else ""
        return Verdict("not distinguishable", lost, failures)
    better = (difference.mean > 0) == higher
    if mismatch is not None and (mismatch.relative > 0) == better and mismatch.relative != 0:
        explains = mismatch.explains
        if explains is None:
            beyond = f"what the mismatch of {mismatch.text} explains is unknown, and it is beyond {TOLERANCE:.0%}"
            return Verdict("not distinguishable", beyond, failures)
        if min(abs(difference.low), abs(difference.high)) <= explains:
            return Verdict("not distinguishable", f"the mismatch of {mismatch.text} alone could explain it", failures)
    return Verdict("better" if better else "worse", "", failures)
