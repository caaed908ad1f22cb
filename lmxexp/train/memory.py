"""What a training step takes of memory, and what to do where that was too much."""

from __future__ import annotations

import dataclasses
import gc
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.optimizers
from mlx.utils import tree_map

from lmxexp import device
from lmxexp.interfaces import Loss
from lmxexp.ops.trees import by_path
from lmxexp.train.fitted import Way, ways
from lmxexp.train.in_parts import InParts
from lmxexp.train.peak_memory import MemoryEstimate, estimate
from lmxexp.train.random_state import set_random_state

if TYPE_CHECKING:
    from lmxexp.model.language_model import LanguageModel, Remat
    from lmxexp.train.settings import TrainSettings


class MemoryLimitError(RuntimeError):
    """The run took more memory than ``train.memory_limit_gb``."""


class OutOfMemoryError(RuntimeError):
    """A run ended for want of memory.

    Args:
        message: what was wanted, with the ledger.
        run_dir: of the run, which can go on from its newest checkpoint.
        beyond: what did not fit, where there is less to try; None: there is not, or it is not to be chosen.
    """

    def __init__(self, message: str, run_dir: Path, beyond: Way | None):
        super().__init__(message)
        self.run_dir, self.beyond = run_dir, beyond


_SAID = (
    *("out of memory", "alloc"),
    # Metal, of commands whose arrays do not fit together: "Insufficient Memory (…CallbackErrorOutOfMemory)".
    *("insufficient memory", "outofmemory"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; MLX raises what its backend does."""
    text = str(error).lower()
    return isinstance(error, MemoryError | MemoryLimitError) or (
        isinstance(error, RuntimeError) and any(said in text for said in _SAID)
    )


def let_go(error: BaseException) -> None:
    """Free the memory that the frames of an error keep, and what MLX keeps of it for later arrays.

    Waits for what is being computed: a step that was begun ahead has arrays until it is through.
    """
    with suppress(RuntimeError):  # of what did not fit either
        mx.synchronize()
    chained: BaseException | None = error
    while chained is not None:
        traceback.clear_frames(chained.__traceback__)
        chained = chained.__cause__ or chained.__context__
    gc.collect()
    device.clear_cache()


class Ledger:
    """What training steps of one run take, by the parts that a batch is computed in and by what is computed once more.
    Nothing is computed for it.

    Args:
        model, optimizer, loss, compute_dtype: as of `lmxexp.train.step.TrainStep`.
        settings: as configured; the batch is that of one device.
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
        self.settings = settings
        self._parts = InParts(model, optimizer, n_devices) if n_devices > 1 else None
        self._args, self._compute_dtype = (model, optimizer, loss), compute_dtype
        self._document_mask = document_mask
        self._known: dict[Way, MemoryEstimate] = {}

    def of(self, n_micro: int, remat: Remat) -> MemoryEstimate:
        """Raises: ValueError, where a primitive cannot be traced."""
        way = Way(n_micro, remat)
        if way not in self._known:
            self._known[way] = estimate(
                *self._args,
                batch_size=self.settings.batch_size,
                seq_len=self.settings.seq_len,
                n_micro=n_micro,
                compute_dtype=self._compute_dtype,
                remat=remat,
                document_mask=self._document_mask,
                backend=device.backend(),
                parts=self._parts,
            )
        return self._known[way]

    def n_logits(self, n_micro: int) -> int:
        """Of a part."""
        return self.settings.batch_size // n_micro * self.settings.seq_len * self._args[0].vocab_size

    def at_least(self, n_micro: int) -> int:
        """Bytes that there are without doubt, and without a trace: state, gradients, logits, what layers hand on."""
        model, optimizer, _ = self._args
        # In mixed precision, half of the second is the weights as they are computed with.
        state = [2 * a.nbytes for a in by_path(model.parameters()).values()]
        state += [a.nbytes for a in by_path(optimizer.state).values()]
        tokens = self.settings.batch_size * self.settings.seq_len // n_micro
        itemsize = 4 if self._compute_dtype is None else self._compute_dtype.size
        return sum(state) + tokens * itemsize * (model.vocab_size + len(model.layers) * model.d_model)

    def let_go(self) -> None:
        """Forget the values of model, optimizer and random state, which after a failed step may be neither old nor new.
        Their shapes are what is left."""
        model, optimizer, _ = self._args
        model.update(tree_map(_placeholder, model.parameters()))
        optimizer.state = tree_map(_placeholder, optimizer.state)
        set_random_state(0)

    def text(self, n_micro: int, remat: Remat) -> str:
        try:
            return text_of(self.of(n_micro, remat))
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
    # Of the estimate's factors, the sum of gradients over parts, and the update after them.
    parts["allocated ahead, copied or summed"] = max(memory.peak - sum(parts.values()), 0)
    listed = ", ".join(f"{name} {in_bytes(size)}" for name, size in parts.items())
    return f"about {in_bytes(memory.peak)} at its peak in training, an estimate: {listed}"


def in_bytes(n: float) -> str:
    """In units of powers of 1000, as memory is everywhere here."""
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return device.in_gb(n)


def out_of_memory(error: BaseException, trainer: Any, ledger: Ledger, *, adapts: bool) -> OutOfMemoryError:
    """What a run says when it ends for want of memory.

    Args:
        error: of the step.
        trainer: the run's.
        ledger: the run's.
        adapts: whether what is auto is to be chosen here.
    """
    ledger.let_go()
    now = Way(trainer.settings.parts, trainer.settings.chosen_remat)
    goes_on = adapts and bool(ways(ledger.settings, now))
    if isinstance(error, MemoryLimitError):
        what = str(error)
    else:
        mend = "" if goes_on else _mend(now, ledger.settings)
        what = f"out of memory in step {trainer.step + 1} ({' '.join(str(error).split())[:200]}){mend}"
    remat = "" if now.remat == "none" else f" and train.remat={now.remat}"
    return OutOfMemoryError(
        f"{what}. With train.n_micro={now.n_micro}{remat} it takes {ledger.text(*now)}",
        trainer.run_dir,
        now if goes_on else None,
    )


def _mend(now: Way, settings: TrainSettings) -> str:
    less = [way for group in ways(dataclasses.replace(settings, n_micro="auto", remat="auto"), now) for way in group]
    in_parts = [way.n_micro for way in less if way.n_micro > now.n_micro]
    once_more = [way.remat for way in less if way.remat != now.remat]
    mends = []
    if in_parts:
        mends.append(f"train.n_micro={min(in_parts)} computes the same batch in smaller parts")
    if once_more:
        mends.append(f"train.remat={once_more[0]} keeps less of it")
    if not mends:
        return "; choose a smaller model, train.batch_size or train.seq_len"
    return f"; {', '.join(mends)}, and auto for either chooses"
