"""A training step that fits into memory: in how many parts, and what to do where it did not after all."""

from __future__ import annotations

import bisect
import dataclasses
import gc
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.optimizers
from mlx.utils import tree_map

from lmxexp import device
from lmxexp.interfaces import ConfigError, Loss
from lmxexp.train.in_parts import InParts
from lmxexp.train.peak_memory import MemoryEstimate, estimate
from lmxexp.train.random_state import set_random_state

if TYPE_CHECKING:
    from lmxexp.model.language_model import LanguageModel
    from lmxexp.train.settings import TrainSettings

SPARE = 0.9
"""Share of the limit that an estimated peak may take."""


class MemoryLimitError(RuntimeError):
    """The run took more memory than ``train.memory_limit_gb``."""


class OutOfMemoryError(RuntimeError):
    """A run ended for want of memory.

    Args:
        message: what was wanted, with the ledger.
        run_dir: of the run, which can go on from its newest checkpoint.
        parts: to try next; None: there are no smaller ones, or they are not to be chosen.
    """

    def __init__(self, message: str, run_dir: Path, parts: int | None):
        super().__init__(message)
        self.run_dir, self.parts = run_dir, parts


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; MLX raises what its backend does."""
    text = str(error).lower()
    return isinstance(error, MemoryError | RuntimeError) and (
        "out of memory" in text or "alloc" in text or isinstance(error, MemoryError | MemoryLimitError)
    )


def let_go(error: BaseException) -> None:
    """Free the memory that the frames of an error keep, and what MLX keeps of it for later arrays."""
    chained: BaseException | None = error
    while chained is not None:
        traceback.clear_frames(chained.__traceback__)
        chained = chained.__cause__ or chained.__context__
    gc.collect()
    device.clear_cache()


class Ledger:
    """What training steps of one run take, by the parts that a batch is computed in. Nothing is computed for it.

    Args:
        model, optimizer, loss, compute_dtype: as of `lmxexp.train.step.TrainStep`.
        settings: its ``n_micro`` is not read; the batch is that of one device.
        document_mask: whether the source has it.
        n_devices: that share model and optimizer, each with a part (``train.parallel=fsdp``).
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: mlx.optimizers.Optimizer,
        loss: Loss,
        settings: TrainSettings,
        compute_dtype: mx.Dtype | None,
        document_mask: bool = False,
        n_devices: int = 1,
    ):
        self.batch_size = settings.batch_size
        self._parts = InParts(model, optimizer, n_devices) if n_devices > 1 else None
        self._args, self._settings, self._compute_dtype = (model, optimizer, loss), settings, compute_dtype
        self._document_mask = document_mask
        self._known: dict[int, MemoryEstimate] = {}

    def of(self, n_micro: int) -> MemoryEstimate:
        """Raises: ValueError, where a primitive cannot be traced."""
        if n_micro not in self._known:
            self._known[n_micro] = estimate(
                *self._args,
                batch_size=self._settings.batch_size,
                seq_len=self._settings.seq_len,
                n_micro=n_micro,
                compute_dtype=self._compute_dtype,
                remat=self._settings.remat,
                document_mask=self._document_mask,
                on_gpu=device.is_gpu(),
                parts=self._parts,
            )
        return self._known[n_micro]

    def let_go(self) -> None:
        """Forget the values of model, optimizer and random state, which after a failed step may be neither old nor new.
        Their shapes are what is left."""
        model, optimizer, _ = self._args
        model.update(tree_map(_placeholder, model.parameters()))
        optimizer.state = tree_map(_placeholder, optimizer.state)
        set_random_state(0)

    def text(self, n_micro: int) -> str:
        try:
            return text_of(self.of(n_micro))
        except Exception as error:  # it is told along with another error, which it must not hide
            return f"what is not known: {error}"


def _placeholder(a: mx.array) -> mx.array:
    return mx.zeros(a.shape, a.dtype)  # never computed


def text_of(memory: MemoryEstimate) -> str:
    """The peak, and what it is made of."""
    parts = {
        "weights": memory.weights,
        "optimizer": memory.optimizer,
        "gradients": memory.gradients,
        "logits": memory.logits,
        "activations and temporaries": memory.activations,
    }
    listed = ", ".join(f"{name} {in_bytes(size)}" for name, size in parts.items())
    return f"about {in_bytes(memory.peak)} at its peak in training, an estimate: {listed}"


def in_bytes(n: float) -> str:
    """In units of powers of 1000, as memory is everywhere here."""
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"


def with_parts(
    settings: TrainSettings, ledger: Ledger, *, known: int | None = None, at_least: int = 1
) -> TrainSettings:
    """The settings with a number for ``n_micro=auto``: the fewest parts that are estimated to fit.

    Args:
        settings: as configured; returned as they are where ``n_micro`` is a number.
        ledger: of the run.
        known: what the run began with, which it keeps.
        at_least: parts, after fewer did not fit.

    Raises:
        ConfigError: not even one sequence at a time fits.
    """
    if settings.n_micro != "auto":
        return settings
    limit_gb = settings.memory_limit_gb or device.recommended_memory_gb()
    least = max(at_least, known or 1)
    if known is not None or limit_gb is None:
        return dataclasses.replace(settings, n_micro=least)
    try:
        n = fewest_parts(lambda n: ledger.of(n).peak, settings.batch_size, SPARE * limit_gb * device.GB, least)
    except ValueError as error:
        print(f"train.n_micro=auto: {least}, as there is no estimate of its memory ({error})", file=sys.stderr)
        return dataclasses.replace(settings, n_micro=least)
    if n is None:
        raise ConfigError(
            f"train.n_micro=auto: not even one sequence at a time fits into {limit_gb:.2f} GB: it takes "
            f"{ledger.text(settings.batch_size)}; choose a smaller model or train.seq_len, or a number for "
            "train.n_micro to try anyway"
        )
    print(f"train.n_micro=auto: {n}, which takes {ledger.text(n)}; the limit is {limit_gb:.2f} GB", file=sys.stderr)
    return dataclasses.replace(settings, n_micro=n)


def fewest_parts(peak: Callable[[int], float], batch_size: int, limit: float, at_least: int = 1) -> int | None:
    """The smallest divisor of a batch, ``at_least`` or more, in which its peak is within the limit; None: none is."""
    divisors = _divisors(batch_size, at_least)
    if divisors and peak(divisors[0]) <= limit:  # by itself: two parts keep a sum of gradients that one has no need of
        return divisors[0]
    i = bisect.bisect_left(divisors, True, lo=min(1, len(divisors)), key=lambda n: peak(n) <= limit)
    return divisors[i] if i < len(divisors) else None


def _divisors(n: int, at_least: int) -> list[int]:
    return [d for d in range(at_least, n + 1) if n % d == 0]


def out_of_memory(error: BaseException, trainer: Any, ledger: Ledger, *, adapts: bool) -> OutOfMemoryError:
    """What a run says when it ends for want of memory.

    Args:
        error: of the step.
        trainer: the run's.
        ledger: the run's.
        adapts: whether ``n_micro`` is to be chosen here.
    """
    ledger.let_go()
    settings = trainer.settings
    now = settings.n_micro
    more = _divisors(ledger.batch_size, now + 1)
    if more and adapts:
        mend = ""
    elif more:
        mend = f"; train.n_micro={more[0]} computes the same batch in smaller parts, train.n_micro=auto finds how many"
    else:
        mend = "; choose a smaller model, train.batch_size or train.seq_len"
    if isinstance(error, MemoryLimitError):
        what = str(error)
    else:
        what = f"out of memory in step {trainer.step + 1} ({' '.join(str(error).split())[:200]}){mend}"
    return OutOfMemoryError(
        f"{what}. With train.n_micro={now} it takes {ledger.text(now)}",
        trainer.run_dir,
        more[0] if more and adapts else None,
    )
