"""The training loop."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers
import numpy as np

from lmxexp import device
from lmxexp.interfaces import Batch, Callback, Logger, Loss, Ramp, Source, Stage
from lmxexp.model.language_model import LanguageModel
from lmxexp.ops.trees import number, numbers
from lmxexp.optim.averaging import evaluated
from lmxexp.ramp.stages import stage_of, steps_of, tokens_in
from lmxexp.train import checkpoint, saving, self_test
from lmxexp.train.devices import Devices
from lmxexp.train.drive import Steps, alone
from lmxexp.train.evaluator import Evaluator
from lmxexp.train.memory import MemoryLimitError
from lmxexp.train.parts import n_parts
from lmxexp.train.precision import compute_dtype
from lmxexp.train.progress import Progress, StepClock
from lmxexp.train.settings import TrainSettings
from lmxexp.train.signals import StopSignals
from lmxexp.train.step import STOP, TrainStep
from lmxexp.train.weights import weights


class DivergedError(RuntimeError):
    """The loss is no number any more."""


class _Stopped(Exception):
    pass


class Trainer:
    """Trains one model: step, callbacks, log, until ``settings.steps`` or a signal.

    Args:
        model: initialised, in the type its weights are kept in.
        optimizer: initialised for it.
        loss: what is minimised and evaluated.
        source: batches.
        settings: see `TrainSettings`.
        ramp: what of the batches each step trains on.
        callbacks: by name; called in order.
        logger: where metrics go.
        run_dir: holds ``checkpoints/`` and whatever callbacks write.
        run_id: kept in the checkpoint, so that a resumed run is the same run to W&B.
        precision: fp32, bf16 or mixed.
        peak_flops: of all devices, FLOPs a second, for ``perf/mfu``; None: unknown.
        flops_per_token: of the whole model, by the length of the sequences; None: ``model`` is whole.
        devices: others that train the same model, each with a share of every batch; None: there are none.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: mlx.optimizers.Optimizer,
        loss: Loss,
        source: Source,
        settings: TrainSettings,
        *,
        ramp: Ramp,
        callbacks: Mapping[str, Callback],
        logger: Logger,
        run_dir: Path,
        run_id: str,
        precision: str,
        peak_flops: float | None = None,
        flops_per_token: Mapping[int, int] | None = None,
        devices: Devices | None = None,
    ):
        self.model, self.optimizer, self.loss, self.source, self.settings = model, optimizer, loss, source, settings
        model.remat = settings.chosen_remat
        self.ramp, self.callbacks, self.logger = ramp, callbacks, logger
        self.run_dir, self.run_id = run_dir, run_id
        self.peak_flops, self.devices = peak_flops, devices
        self._flops_per_token = flops_per_token
        self._stop_asked = False
        """Of several devices: by any, as all of them know."""
        self.end = 0
        """The step that `steps` goes to."""
        self.ahead = False
        """Whether the step after the next one has been begun: the state is no longer that of `step`."""
        world = 1 if devices is None else devices.size
        self._own_stages = [Stage(s.start, s.batch_size // world, s.seq_len) for s in ramp.stages]
        self._n_parts = n_parts(self._own_stages, settings.parts)
        self.memory_limit_gb = settings.memory_limit_gb or device.recommended_memory_gb()  # None: nothing is known
        self.compute_dtype = compute_dtype(precision)
        self.precision = precision
        self.progress = Progress()
        self.paused_at: dict[str, float] = {}  # the evaluation where `fit` paused
        self.history: list[dict[str, float]] = []  # what was logged, of a resumed run from its beginning
        self.clock = StepClock()
        self.signals = StopSignals()
        self.n_members = 1
        """Runs that are trained in the same step."""
        self.fetch: Callable[[], None] | None = None
        """Where the steps are computed elsewhere: puts the state of now into model, optimizer and random state."""
        self.fetched_at: int | None = None
        """The step that it was last called at: since then the state here is as new as there."""
        self.evaluator = Evaluator(
            model,
            loss,
            source,
            n_micro=settings.parts,
            compute_dtype=self.compute_dtype,
            devices=devices,
            compile=settings.compile,
        )

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.progress.step

    @property
    def tokens(self) -> int:
        """Training tokens seen."""
        return tokens_in(steps_of(self.ramp.stages, self.step))

    def flops_per_token(self, seq_len: int) -> int:
        """`LanguageModel.flops_per_token` of the model, of which devices may keep parts."""
        return self.model.flops_per_token(seq_len) if self._flops_per_token is None else self._flops_per_token[seq_len]

    def batch(self, step: int) -> Batch:
        """What step number ``step``, from 0, trains on; of several devices, this one's share."""
        if self.devices is None:
            return self.ramp.batch(self.source, step)
        # Its share of each part that the step is computed in: a part is of the same rows on any number of devices.
        n, size = self._n_parts[stage_of(self._own_stages, step).shape], self.devices.size
        shares = [
            self.ramp.batch(self.source, step, rank=i * size + self.devices.rank, world=n * size) for i in range(n)
        ]
        return Batch(*(None if of_all[0] is None else np.concatenate(of_all) for of_all in zip(*shares, strict=True)))

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    def fit(self, until: int | None = None) -> str:
        """Train to the end, or to step ``until`` if that comes before it; see `steps`."""
        return alone(self.steps(until))

    def steps(self, until: int | None = None) -> Steps[str]:
        """The run without the computation of its steps, which it asks for.

        Returns:
            ``ok``; ``paused`` after ``until`` steps, with a checkpoint and an evaluation in ``paused_at``; ``stopped``
            after SIGTERM or Ctrl-C, with a checkpoint.

        Raises:
            DivergedError: the loss became NaN or infinite.
            MemoryLimitError: peak memory above the limit.
        """
        self.model.train()
        if self.settings.self_test:
            self._meet()
            self_test.prove(self)
        with self.signals:
            try:
                if self.progress.unlogged is not None:  # stopped between a step and its line in the log
                    self._report(self.progress.unlogged)
                self.end = self.settings.steps if until is None else min(until, self.settings.steps)
                while self.step < self.end:
                    if not self.ahead:
                        self.stop_if_asked()
                        self._meet()
                    if self.devices is not None:
                        self.devices.ask_to_stop(self.signals.received is not None)
                    stepped = yield self
                    self.clock.add(stepped.seconds, self.stage(self.step), stepped.waited)
                    self._after_step(stepped.scalars)
                if self.step < self.settings.steps:
                    self._pause()
                    return "paused"
            except _Stopped:
                self.save_checkpoint()
                return "stopped"
        return "ok"

    def goes_on(self) -> bool:
        """Whether the step after the next one may be begun before the next one's scalars are known: nothing looks at
        the state between them, nor is the run asked to stop."""
        after = self.step + 1
        return (
            after < self.end
            and self.stage(after) == self.stage(self.step)
            and not self._should_stop()
            and not _any_reads_state(self._due(after))
        )

    def _meet(self) -> None:
        # Rank 0 starts loggers and writes checkpoints, which may take long. A device that waits for the sums of a step
        # meanwhile is at work for Metal, which ends commands after some seconds; here the host waits.
        if self.devices is not None:
            self.devices.meet()

    def _pause(self) -> None:
        self._fetch_state()
        # The evaluation is no part of the run: its log and its best checkpoint stay those of one that never paused.
        with self.evaluated_weights():
            self.paused_at = self.metrics_of_weights()
        self.save_checkpoint()

    def _after_step(self, scalars: dict[str, mx.array]) -> None:
        self.progress.step += 1
        if STOP in scalars:
            self._stop_asked = number(scalars.pop(STOP)) > 0
        self.progress.eval_loss = None
        loss = number(scalars["train/loss"])
        if not math.isfinite(loss):
            raise DivergedError(self._divergence(loss, number(scalars["train/lr"])))
        limit_gb = self.memory_limit_gb
        if limit_gb is not None and device.peak_memory_gb() > limit_gb:
            raise MemoryLimitError(
                f"peak memory {device.in_gb(device.peak_memory_gb())} is above the limit of {device.in_gb(limit_gb)} "
                f"(train.memory_limit_gb) after step {self.step}: lower train.batch_size, or raise train.n_micro "
                f"(now {self.settings.parts}) for the same batch in smaller parts"
            )
        due = self.step % self.settings.log_every == 0 or self.step == self.settings.steps
        self._report(numbers(scalars) | self._size_of_step() | self._seen() if due else {})

    def _size_of_step(self) -> dict[str, float]:
        """As a metric, of the step that was done last, where steps differ in it."""
        grows = self.ramp.grows
        return {} if grows is None else {f"train/{grows}": float(getattr(self.stage(self.step - 1), grows))}

    def _seen(self) -> dict[str, float]:
        """As metrics, what of each source of a mixture the run has trained on."""
        seen: Callable[[int], dict[str, float]] | None = getattr(self.source, "seen", None)
        return {} if seen is None else {f"data/{name}": value for name, value in seen(self.tokens).items()}

    def stage(self, step: int) -> Stage:
        """The shape that step number ``step``, from 0, has."""
        return stage_of(self.ramp.stages, step)

    def _report(self, metrics: dict[str, float]) -> None:
        """Callbacks, then the line in the log, then what must not stand without that line."""
        self.progress.unlogged = dict(metrics)
        due = self._due(self.step)
        if _any_reads_state(due):
            self._fetch_state()
        for callback in due:
            if not callback.after_log:
                metrics |= callback(self)
        if metrics:
            metrics = {"tokens": self.tokens, **metrics}
            self.history.append({"step": self.step, **metrics})
            self.logger.log(metrics, step=self.step)
        self.progress.unlogged = None
        for callback in due:
            if callback.after_log:
                callback(self)

    def _fetch_state(self) -> None:
        if self.fetch is not None and self.fetched_at != self.step:
            self.fetch()
            self.fetched_at = self.step

    def _due(self, step: int) -> list[Callback]:
        """The callbacks after so many steps, in order."""
        at_end = step == self.settings.steps
        return [c for c in self.callbacks.values() if (at_end and c.at_end) or (c.every > 0 and step % c.every == 0)]

    def evaluate(self) -> dict[str, float]:
        """Metrics over the whole validation split, of `evaluated_weights`; the best so far is noted."""
        with self.evaluated_weights():
            metrics = self.metrics_of_weights()
        progress = self.progress
        progress.eval_loss = metrics["eval/loss"]
        if progress.best_eval_loss is None or metrics["eval/loss"] < progress.best_eval_loss:
            progress.best_eval_loss, progress.best_eval_step = metrics["eval/loss"], self.step
        return metrics

    def metrics_of_weights(self) -> dict[str, float]:
        """Metrics over the whole validation split of the weights that the model has; see `Evaluator`."""
        metrics = self.evaluator(should_stop=self._should_stop)
        if metrics is None:
            raise _Stopped
        return metrics

    @contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """Within, the model has the weights that the optimizer is judged by: for most those that it trains."""
        with self.weights(evaluated(self.optimizer, self.model.trainable_parameters())):
            yield

    @contextmanager
    def weights(self, parameters: Any) -> Iterator[None]:
        """Within, the model has these; of several devices each gives its own parts, and the model has whole ones."""
        with weights(self.model, parameters if self.devices is None else self.devices.whole(parameters)):
            yield

    def _should_stop(self) -> bool:
        # Several devices agree on it once a step: one that stopped alone would leave the others waiting.
        return self.signals.received is not None if self.devices is None else self._stop_asked

    def stop_if_asked(self) -> None:
        """Ends the run after a signal; for callbacks that take long. Resumed, it calls the step's callbacks again."""
        if self._should_stop():
            raise _Stopped

    def save_checkpoint(self) -> None:
        """See `lmxexp.train.saving.save`."""
        self._fetch_state()
        saving.save(self)

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """See `lmxexp.train.saving.restore`."""
        saving.restore(self, saved)

    def make_step(self, *, compile: bool | None = None) -> TrainStep:
        """The step of this model alone, compiled as the settings say unless told otherwise."""
        return TrainStep(
            self.model,
            self.optimizer,
            self.loss,
            max_grad_norm=self.settings.max_grad_norm,
            n_micro=self.settings.parts,
            stages=self._own_stages,
            compute_dtype=self.compute_dtype,
            devices=self.devices,
            compile=self.settings.compile if compile is None else compile,
        )

    def _divergence(self, loss: float, lr: float) -> str:
        last = checkpoint.newest(self.checkpoints)
        saved = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        return (
            f"train/loss is {loss} at step {self.step} with learning rate {lr:.3g}; {saved}. "
            "Lower optim.learning_rate, lengthen the warmup, or set train.max_grad_norm"
        )


def _any_reads_state(callbacks: Sequence[Callback]) -> bool:
    return any(getattr(callback, "reads_state", True) for callback in callbacks)
