"""lmxexp's own step, run as a training run runs it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from omegaconf import DictConfig

from lmxexp import device
from lmxexp.bench.measure import Contestant
from lmxexp.build import build
from lmxexp.interfaces import Batch, Tokenizer
from lmxexp.logger.loggers import Loggers
from lmxexp.model.build import build_model, check_positions
from lmxexp.ops.trees import by_path, number
from lmxexp.optim.build import optimizer_of
from lmxexp.ramp.build import ramp_of
from lmxexp.train import precision
from lmxexp.train.drive import Alone
from lmxexp.train.fitted import fitted
from lmxexp.train.memory import Ledger
from lmxexp.train.step import to_arrays
from lmxexp.train.trainer import Trainer


class RandomTokens:
    """A `Source` of tokens without meaning, some of them far more frequent than others, as in text (Zipf's law).

    A few batches are made in advance and come again, so that no contestant waits for data, and losses fall from the
    first step on.

    Args:
        vocab_size: V.
        batch_size: B.
        seq_len: L.
        n_batches: different ones.
    """

    tokenizer: Tokenizer | None = None
    eval_bytes: int | None = None
    record: Mapping[str, Any] = {}

    def __init__(self, vocab_size: int, batch_size: int, seq_len: int, n_batches: int = 4):
        self.vocab_size, self.fingerprint = vocab_size, f"random-{vocab_size}-{batch_size}-{seq_len}"
        frequency = 1.0 / np.arange(1, vocab_size + 1)
        generator = np.random.default_rng(0)
        shape = (n_batches, batch_size, seq_len + 1)
        ids = generator.choice(vocab_size, shape, p=frequency / frequency.sum()).astype(np.int32)
        self._batches = [Batch(np.ascontiguousarray(a[:, :-1]), np.ascontiguousarray(a[:, 1:])) for a in ids]

    def batch(self, index: int, *, rank: int = 0, world: int = 1) -> Batch:
        """Batch number ``index``, as one process sees it."""
        return self._batches[index % len(self._batches)]

    def eval_batches(self) -> Iterator[Batch]:
        """None: nothing is evaluated."""
        return iter(())


class OwnStep(Contestant):
    """The step that ``python -m lmxexp`` takes with a configuration, on random tokens.

    Raises:
        ConfigError: kinds or sizes that do not fit together.
    """

    name = "lmxexp"

    def __init__(self, cfg: DictConfig, vocab_size: int):
        super().__init__()
        cfg = copy.deepcopy(cfg)  # instantiate resolves interpolations in place
        self.settings = build(cfg.train)
        self.precision = precision.resolve(self.settings.precision, on_gpu=device.is_gpu())
        self.source = RandomTokens(vocab_size, self.settings.batch_size, self.settings.seq_len)
        self.model = build_model(cfg, vocab_size=vocab_size)
        check_positions(self.model, self.settings.seq_len)
        self._loss = build(cfg.loss)
        self.flops_per_token = self.model.flops_per_token(self.settings.seq_len)
        if self.precision == "bf16":
            self.model.set_dtype(mx.bfloat16)
        self.optimizer = optimizer_of(cfg)
        self.optimizer.init(self.model.trainable_parameters())
        compute_dtype = precision.compute_dtype(self.precision)
        ledger = Ledger(self.model, self.optimizer, self._loss, self.settings, compute_dtype)
        self.settings = fitted(self.settings, ledger)
        self._trainer = Trainer(
            self.model,
            self.optimizer,
            self._loss,
            self.source,
            self.settings,
            ramp=ramp_of(cfg),
            callbacks={},
            logger=Loggers({}),
            run_dir=Path(),  # nothing is written
            run_id="bench",
            precision=self.precision,
        )
        self.model.train()
        self._compute = Alone(self._trainer)
        mx.eval(self.model.parameters(), self.optimizer.state)

    def run(self, n_steps: int) -> list[float]:
        losses = []
        self._trainer.end = self._trainer.step + n_steps
        for _ in range(n_steps):
            stepped = self._compute()
            self._trainer.progress.step += 1
            losses.append(number(stepped.scalars["train/loss"]))  # a run looks at it, too
        mx.eval(self.model.state, self.optimizer.state)
        return losses

    def n_params(self) -> int:
        return self.model.n_params()

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        self.model.load_weights([(name, mx.array(a)) for name, a in weights.items()])
        if self.precision == "bf16":
            self.model.set_dtype(mx.bfloat16)
        mx.eval(self.model.parameters())

    def loss(self, batch: Batch) -> float:
        """See `Contestant.loss`. Weights that are kept in bf16 are widened for it, which changes none."""
        self.model.eval()
        self.model.set_dtype(mx.float32)
        value, _ = self._loss(self.model, Batch(**to_arrays(batch)))
        loss = number(value)
        if self.precision == "bf16":
            self.model.set_dtype(mx.bfloat16)
        self.model.train()
        return loss

    def fp32_weights(self) -> dict[str, np.ndarray]:
        """The parameters by name, copies."""
        return {name: np.array(a.astype(mx.float32)) for name, a in by_path(self.model.parameters()).items()}
