"""From short sequences to long ones."""

from __future__ import annotations

from collections.abc import Sequence

from lmxexp.interfaces import Batch, Grows, Source, Stage
from lmxexp.ramp.stages import doubling, stage_of, starts


class SeqLen:
    """The sequences double, in stages of as many steps, until they are ``seq_len`` long (sequence-length warmup).

    Short sequences are steadier to begin with and cheaper, by what mixing over positions costs. Every step has
    ``batch_size * seq_len`` tokens: the source's rows are cut into pieces, so nothing of a batch is left out, and every
    target is still one. A piece does not see those before it.

    Args:
        steps: optimizer steps that ``until`` is a fraction of: the run's.
        batch_size: B, sequences in a step at last.
        seq_len: L, tokens in a sequence at last.
        start: tokens in the first sequences, ``seq_len`` divided by a power of two; None: by eight.
        until: the fraction of ``steps`` after which the sequences are whole.

    Shapes: (B, L) to (k B, L / k), all arrays of a batch.

    Raises:
        ConfigError: ``start`` or ``until`` is outside its range, or there are fewer steps than stages.

    Source: H. Jin et al., 2023, GrowLength: Accelerating LLMs Pretraining by Progressively Growing Training Length,
        https://arxiv.org/abs/2310.00576. Why it is steadier: C. Li, M. Zhang, Y. He, 2022, The Stability-Efficiency
        Dilemma: Investigating Sequence Length Warmup for Training GPT Models, https://arxiv.org/abs/2108.06084; there
        the length grows linearly in steps of 8 and what is beyond it is thrown away, so early steps have fewer tokens.
    """

    grows: Grows | None = "seq_len"
    cuts_rows = True

    def __init__(self, steps: int, batch_size: int, seq_len: int, start: int | None = None, until: float = 0.3):
        lengths = doubling("seq_len", seq_len, start)
        begins = starts(until, steps, [1] * (len(lengths) - 1))
        self.stages: Sequence[Stage] = [
            Stage(begin, batch_size * (seq_len // length), length)
            for begin, length in zip(begins, lengths, strict=True)
        ]

    def batch(self, source: Source, step: int, *, rank: int = 0, world: int = 1) -> Batch:
        length = stage_of(self.stages, step).seq_len
        rows = source.batch(step, rank=rank, world=world)
        return Batch(*(None if a is None else a.reshape(-1, length) for a in rows))
