"""From few sequences in a step to many."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from lmxexp.interfaces import Batch, Grows, Source, Stage
from lmxexp.ramp.stages import doubling, place_of, starts


class BatchSize:
    """The batch doubles, in stages of as many steps, until it is ``batch_size`` (batch-size warmup).

    At the beginning of training the gradient is large beside its noise, and a small batch is nearly as good a step
    as a large one, for fewer tokens. The learning rate stays what its schedule says.

    The source's batches are used in order, each as a whole: the steps of a stage take the parts of one after the
    other. A stage's length is a multiple of the parts, so no row is left out at its end, and which rows a step trains
    on follows from its number alone.

    Args:
        steps: optimizer steps that ``until`` is a fraction of: the run's.
        batch_size: B, sequences in a step at last.
        seq_len: L, tokens in a sequence.
        start: sequences in the first steps, ``batch_size`` divided by a power of two; None: by eight.
        until: the fraction of ``steps`` after which the batch is whole, within the rounding of the stages' lengths.

    Raises:
        ConfigError: ``start`` or ``until`` is outside its range, or a stage has under ``batch_size / start`` steps.

    Source: T. Brown et al., 2020, Language Models are Few-Shot Learners, https://arxiv.org/abs/2005.14165, appendix B:
        linear in the tokens seen, over the first 4 to 12 billion. To double after equal numbers of
        steps is the same in stages. Why: S. McCandlish et al., 2018, An Empirical Model of Large-Batch Training,
        https://arxiv.org/abs/1812.06162; S. Smith et al., 2018, Don't Decay the Learning Rate, Increase the Batch Size,
        https://arxiv.org/abs/1711.00489, which raises it in place of a falling learning rate.
    """

    grows: Grows | None = "batch_size"
    cuts_rows = False

    def __init__(self, steps: int, batch_size: int, seq_len: int, start: int | None = None, until: float = 0.3):
        sizes = doubling("batch_size", batch_size, start)
        self._parts = [batch_size // size for size in sizes]
        begins = starts(until, steps, self._parts[:-1])
        self.stages: Sequence[Stage] = [Stage(begin, size, seq_len) for begin, size in zip(begins, sizes, strict=True)]
        used = ((after - before) // n for (before, after), n in zip(pairwise(begins), self._parts, strict=False))
        self._used = list(accumulate(used, initial=0))
        """Batches of the source that were used up before each stage."""

    def batch(self, source: Source, step: int, *, rank: int = 0, world: int = 1) -> Batch:
        place = place_of(self.stages, step)
        parts = self._parts[place]
        index, part = divmod(step - self.stages[place].start, parts)
        # A part of the source's batch is a share of it, and so is a rank's share of the part.
        return source.batch(self._used[place] + index, rank=part * world + rank, world=parts * world)
