"""Speed, state and memory against the length of the sequence."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from lmxexp import device
from lmxexp.interfaces import Batch, ConfigError
from lmxexp.ops.trees import by_path
from lmxexp.train.precision import cast
from lmxexp.train.random_state import STATE, get_random_state, set_random_state
from lmxexp.train.step import to_arrays
from lmxexp.train.traced import for_training

if TYPE_CHECKING:
    from lmxexp.train.trainer import Trainer

_log = logging.getLogger(__name__)

_WARM_UP = 2
"""Tokens that are decoded before the clock runs: the first make room in the cache."""


class Speed:
    """Measures the trained model at several lengths L, once, after the last step:

    - ``speed/train_tokens_per_s/L``: forward and backward, of a batch of ``tokens`` tokens;
    - ``speed/train_peak_gb/L``: the most memory (1e9 bytes) that arrays took during that, with weights and optimizer;
    - ``speed/decode_tokens_per_s/L``: one sequence, one token at a time, behind a prompt of L tokens, with the cache;
    - ``speed/state_bytes/L``: of that cache, behind the prompt.

    Speeds are by the median time, without compilation. Tokens are random, types those of the run's precision. The
    optimizer's update, whose cost no length changes, is left out.

    The run stays as it is: weights, optimizer, random state, ``mem/peak_gb`` and the training's clock. A length beyond
    the model's positions, or at which something fails (memory, above all), is skipped, and the log says so; so is
    training at lengths beyond one whose peak was above the run's memory limit. A run that is stopped here measures
    everything when it goes on.

    Args:
        lengths: tokens of a sequence.
        tokens: of a training batch: it holds as many sequences as make so many, at least one.
        decode_tokens: timed at each length.
        repeats: training steps timed at each length.

    Raises:
        ConfigError: no lengths, one below 2, or the same twice; other numbers below 1.
    """

    every = 0
    at_end = True
    after_log = False

    def __init__(self, lengths: list[int], tokens: int, decode_tokens: int, repeats: int):
        shown = f"callback.speed.lengths=[{','.join(map(str, lengths))}]"
        if not lengths or min(lengths) < 2 or len(set(lengths)) < len(lengths):
            raise ConfigError(f"{shown} must be different lengths of at least 2 tokens")
        for name, value in (("tokens", tokens), ("decode_tokens", decode_tokens), ("repeats", repeats)):
            if value < 1:
                raise ConfigError(f"callback.speed.{name}={value} must be at least 1")
        self.lengths, self.tokens, self.decode_tokens, self.repeats = sorted(lengths), tokens, decode_tokens, repeats

    def __call__(self, trainer: Trainer) -> dict[str, float]:
        random_state, training = get_random_state(), trainer.model.training
        metrics: dict[str, float] = {}
        skipped: dict[str, list[str]] = {}
        try:
            with device.own_peak():
                for length in self.lengths:
                    for name, measure, reach in (
                        ("training", self._training, length),
                        ("decoding", self._decoding, length + _WARM_UP + self.decode_tokens),
                    ):
                        trainer.stop_if_asked()
                        try:
                            _check_reach(trainer, reach)
                            metrics |= {f"speed/{k}/{length}": v for k, v in measure(trainer, length).items()}
                        except Exception as error:  # the trained run must not be lost for a measurement
                            skipped.setdefault(" ".join(str(error).split()), []).append(f"{name} at {length}")
        finally:
            device.clear_cache()
            trainer.model.train(training)
            set_random_state(random_state)
        for reason, what in skipped.items():
            _log.warning("callback speed: not measured: %s: %s", ", ".join(what), reason)
        return metrics

    def _training(self, trainer: Trainer, length: int) -> dict[str, float]:
        _check_memory(trainer)
        rows = max(1, self.tokens // length)
        ids = _random_tokens(trainer, (rows, length + 1))
        arrays = to_arrays(Batch(ids[:, :-1], ids[:, 1:]))
        trainer.model.train()
        step = _gradient_step(trainer)
        step(arrays)  # compiles
        device.clear_cache()
        device.reset_peak_memory()
        seconds = [_seconds(lambda: step(arrays)) for _ in range(self.repeats)]
        return {
            "train_tokens_per_s": rows * length / statistics.median(seconds),
            "train_peak_gb": device.peak_memory_gb(),
        }

    def _decoding(self, trainer: Trainer, length: int) -> dict[str, float]:
        model, params = trainer.model, trainer.model.parameters()
        prompt = mx.array(_random_tokens(trainer, (1, length)))
        model.eval()
        try:
            if trainer.compute_dtype is not None:
                model.update(cast(params, trainer.compute_dtype))
            cache = model.make_cache()
            token = model(prompt, cache=cache)[:, -1:].argmax(-1)
            mx.eval(token)
            state_bytes = sum(a.nbytes for c in cache for a in by_path(c.state).values())

            def decode() -> None:
                nonlocal token
                token = model(token, cache=cache)[:, -1:].argmax(-1)
                mx.eval(token)

            seconds = [_seconds(decode) for _ in range(_WARM_UP + self.decode_tokens)][_WARM_UP:]
        finally:
            model.update(params)
        return {"decode_tokens_per_s": 1 / statistics.median(seconds), "state_bytes": state_bytes}


def _gradient_step(trainer: Trainer) -> Callable[[dict[str, mx.array]], None]:
    """Loss and gradients as in a training step, thrown away."""
    model, dtype = trainer.model, trainer.compute_dtype

    def loss(params: Any, arrays: dict[str, mx.array]) -> mx.array:
        model.update(params)
        return trainer.loss(model, Batch(**arrays))[0]

    value_and_grad = mx.value_and_grad(loss)

    def gradient(arrays: dict[str, mx.array]) -> Any:
        params = model.trainable_parameters()
        with for_training(model, params, dtype) as used:
            result = value_and_grad(used, arrays)
        model.update(params)  # the trace left its casts there
        return result

    # The random state is an output as well, or dropout would be a constant of the trace.
    compiled = partial(mx.compile, inputs=[model.state, STATE], outputs=[STATE]) if trainer.settings.compile else _plain
    step = compiled(gradient)
    return lambda arrays: mx.eval(step(arrays))


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _check_reach(trainer: Trainer, n_positions: int) -> None:
    max_len = trainer.model.max_len
    if max_len is not None and n_positions > max_len:
        raise ConfigError(f"the model has positions for {max_len} tokens (model.position.embedding.max_len)")


def _check_memory(trainer: Trainer) -> None:
    """Refuse after a peak above the run's limit: beyond it a Mac swaps or freezes."""
    limit_gb, peak_gb = trainer.memory_limit_gb, device.peak_memory_gb()
    if limit_gb is not None and peak_gb > limit_gb:
        took, limit = device.in_gb(peak_gb), device.in_gb(limit_gb)
        raise MemoryError(f"shorter ones took {took}, the limit is {limit} (train.memory_limit_gb)")


def _random_tokens(trainer: Trainer, shape: Sequence[int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, trainer.model.vocab_size, shape).astype(np.int32)


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
