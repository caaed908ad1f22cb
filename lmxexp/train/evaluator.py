"""Loss over the whole validation split."""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import mlx.core as mx

from lmxexp import device
from lmxexp.interfaces import Batch, Loss, Source
from lmxexp.model.language_model import LanguageModel
from lmxexp.ops.trees import number
from lmxexp.train.devices import Devices
from lmxexp.train.precision import cast
from lmxexp.train.sentinel import CompileSentinel
from lmxexp.train.step import split, to_arrays


class Evaluator:
    """``evaluator()`` gives the metrics of the model as it is now.

    Compiled apart from the training step: whether a module is in training mode is a constant of the trace.

    Args:
        model: evaluated without dropout.
        loss: called for its ``nll``, ``n_targets`` and ``n_correct``.
        source: its ``eval_batches``, all of them.
        n_micro: parts that a batch is computed in, as in training: all logits at once might not fit.
        compute_dtype: parameters are cast to it; None: as they are.
        devices: others that evaluate other batches of the same model, which is whole meanwhile; None: there are none.
        compile: whether to compile.
    """

    def __init__(
        self,
        model: LanguageModel,
        loss: Loss,
        source: Source,
        *,
        n_micro: int = 1,
        compute_dtype: mx.Dtype | None = None,
        devices: Devices | None = None,
        compile: bool = True,
    ):
        self.devices = devices
        self.model, self.loss, self.source, self.compute_dtype = model, loss, source, compute_dtype
        self.n_micro = n_micro
        self.sentinel = CompileSentinel()
        self.compiled = compile
        self._sums = mx.compile(self._sums_of, inputs=[model.state]) if compile else self._sums_of

    def __call__(self, should_stop: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """``eval/loss`` in nats a target, ``eval/ppl``, ``eval/accuracy`` (share of targets that were the most likely
        token) and, where the source knows its bytes, ``eval/bpb`` in bits; of a source that is made of several, also
        ``eval/<name>/loss`` and so on of each. None: ``should_stop`` said so before the split was through."""
        training = self.model.training
        self.model.eval()
        sources: Mapping[str, Source] = getattr(self.source, "sources", None) or {"": self.source}
        totals: dict[str, list[float]] = {}
        try:
            for name, source in sources.items():
                of_source = self._totals(source, should_stop)
                if of_source is None:
                    return None
                totals[name] = of_source
        finally:
            self.model.train(training)
        metrics = _metrics("eval", [sum(column) for column in zip(*totals.values(), strict=True)], self.source)
        for name, source in sources.items() if len(sources) > 1 else ():
            metrics |= _metrics(f"eval/{name}", totals[name], source)
        return metrics

    def _totals(self, source: Source, should_stop: Callable[[], bool]) -> list[float] | None:
        totals, waiting = [0.0, 0.0, 0.0], None
        for batch in self._batches(source):
            if should_stop():
                return None
            for part in split(to_arrays(batch), self.n_micro):
                sums = self._sums(part)
                mx.async_eval(sums)
                # Read one behind: the device computes this one while the host reads the last and makes the next.
                totals = _added(totals, waiting)
                waiting = sums
        totals = _added(totals, waiting)
        device.wait()  # or the last batch might be what nobody computed
        return totals if self.devices is None else self.devices.total(totals)

    def _batches(self, source: Source) -> Iterator[Batch]:
        batches = source.eval_batches()
        return batches if self.devices is None else islice(batches, self.devices.rank, None, self.devices.size)

    def _sums_of(self, arrays: dict[str, mx.array]) -> list[mx.array]:
        if self.compiled:
            self.sentinel.traced("evaluation", batch=arrays, model=self.model.parameters())
        params: Any = self.model.parameters()
        if self.compute_dtype is not None:
            self.model.update(cast(params, self.compute_dtype))
        try:
            _, aux = self.loss(self.model, Batch(**arrays))
        finally:
            self.model.update(params)
        return [aux["nll"], aux["n_targets"], aux["n_correct"]]


def _metrics(prefix: str, totals: list[float], source: Source) -> dict[str, float]:
    nll, n_targets, n_correct = totals
    loss = nll / n_targets
    metrics = {"loss": loss, "ppl": math.exp(min(loss, 700.0)), "accuracy": n_correct / n_targets}
    if source.eval_bytes is not None:
        metrics["bpb"] = nll / math.log(2) / source.eval_bytes
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def _added(totals: list[float], sums: list[mx.array] | None) -> list[float]:
    # In Python's float64: an fp32 sum over millions of targets loses the digits that tell two designs apart.
    return totals if sums is None else [t + number(s) for t, s in zip(totals, sums, strict=True)]
