"""Trainers of other MLX packages beside lmxexp's: mlx-lm's and lmxlab's.

Both train under MLX's AdamW, which decays vectors as well and keeps its state in the parameters' type; neither has
mixed precision.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
import numpy as np

from lmxexp.bench.measure import Clock, Contestant, Turn
from lmxexp.bench.peers import N_AGREEING_STEPS, Task
from lmxexp.interfaces import ConfigError
from lmxexp.ops.trees import by_path, number


class ClippedAdamW(mlx.optimizers.AdamW):
    """MLX's AdamW behind clipping by the global norm, for trainers that do not clip."""

    def __init__(self, max_grad_norm: float | None, **settings: Any):
        super().__init__(**settings)
        self.max_grad_norm = max_grad_norm

    def apply_gradients(self, gradients: dict, parameters: dict) -> dict:
        if self.max_grad_norm is not None:
            gradients, _ = mlx.optimizers.clip_grad_norm(gradients, self.max_grad_norm)
        return super().apply_gradients(gradients, parameters)


class _MlxStep(Contestant):
    """What both have in common.

    Raises:
        ConfigError: ``train.precision=mixed``.
    """

    def __init__(self, task: Task, model: nn.Module):
        super().__init__()
        if task.precision == "mixed":
            raise ConfigError(f"{self.name} has no train.precision=mixed; fp32 and bf16 can be compared")
        if task.precision == "bf16":
            self.note = "its optimizer's state is bf16, lmxexp's fp32"
        self.task, self.model, self.n_done = task, model, 0
        self.load(task.weights)

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        self.model.load_weights([(self.rename(name), mx.array(a)) for name, a in weights.items()])
        mx.eval(self.model.parameters())

    def rename(self, name: str) -> str:
        """What a parameter of lmxexp's is called in this model."""
        raise NotImplementedError

    def adamw(self, *, clips: bool) -> mlx.optimizers.AdamW:
        """With lmxexp's settings and schedule."""
        task = self.task
        return ClippedAdamW(
            task.max_grad_norm if clips else None,
            learning_rate=lambda step: task.peak_rate * task.schedule(step),
            betas=list(task.betas),
            eps=task.eps,
            weight_decay=task.weight_decay,
            bias_correction=True,
        )

    def cast(self) -> None:
        """Put the weights into the type that they are trained in."""
        if self.task.precision == "bf16":
            self.model.set_dtype(mx.bfloat16)

    def n_params(self) -> int:
        return sum(p.size for p in by_path(self.model.trainable_parameters()).values())


class MlxLmStep(_MlxStep):
    """``mlx_lm.tuner.trainer.train`` on ``mlx_lm.models.llama``, with clipping added.

    Each turn is a call of it. From the second on it takes one step more than is asked for, its first, which traces
    anew and is not timed.
    """

    name = "mlx_lm"

    def __init__(self, task: Task):
        from mlx_lm.models.llama import Model, ModelArgs  # pyright: ignore[reportMissingImports]

        s = task.shape
        sizes = ModelArgs(
            model_type="llama",
            hidden_size=s.d_model,
            num_hidden_layers=s.n_layers,
            intermediate_size=s.d_ff,
            num_attention_heads=s.n_heads,
            num_key_value_heads=s.n_kv_heads,
            head_dim=s.head_dim,
            rms_norm_eps=s.eps,
            rope_theta=s.rope_theta,
            vocab_size=s.vocab_size,
            tie_word_embeddings=True,
        )
        super().__init__(task, Model(sizes))
        self.optimizer = self.adamw(clips=True)

    def rename(self, name: str) -> str:
        return f"model.{name.removeprefix('embedding.')}"

    def loss(self, batch: Any) -> float:
        from mlx_lm.tuner.trainer import default_loss  # pyright: ignore[reportMissingImports]

        return number(default_loss(self.model, *_with_lengths(batch))[0])

    def turn(self, n_steps: int, clock: Clock) -> Turn:
        from mlx_lm.tuner.callbacks import TrainingCallback  # pyright: ignore[reportMissingImports]
        from mlx_lm.tuner.trainer import TrainingArgs, train  # pyright: ignore[reportMissingImports]

        n_untimed = 1 if self.n_done else 0
        n_all = n_steps + n_untimed
        first = self.n_done
        marks: dict[str, float] = {}
        losses: list[float] = []
        if not first:
            self.cast()
            self.optimizer.init(self.model.trainable_parameters())

        def batches(**_: Any) -> Iterator[tuple[mx.array, mx.array]]:
            for i in range(n_all):
                if i == n_untimed:
                    marks["start"] = clock()
                yield _with_lengths(self.task.source.batch(first + i))

        class Report(TrainingCallback):
            def on_train_loss_report(self, train_info: dict) -> None:
                marks["end"] = clock()
                losses.append(train_info["train_loss"])

        with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(io.StringIO()):
            settings = TrainingArgs(
                batch_size=self.task.batch_size,
                iters=n_all,
                max_seq_length=self.task.shape.seq_len + 1,
                # Each loss is looked at where losses are compared, and then, as usual, few.
                steps_per_report=1 if first < N_AGREEING_STEPS else n_all,
                steps_per_save=n_all + 1,
                adapter_file=str(Path(directory) / "weights.safetensors"),
            )
            train(self.model, self.optimizer, None, args=settings, iterate_batches=batches, training_callback=Report())
        self.n_done += n_all
        return Turn(marks["end"] - marks["start"], losses)


class LmxlabStep(_MlxStep):
    """``lmxlab.training.trainer.Trainer`` on its llama."""

    name = "lmxlab"

    def __init__(self, task: Task):
        from lmxlab.models.base import LanguageModel  # pyright: ignore[reportMissingImports]
        from lmxlab.models.llama import llama_config  # pyright: ignore[reportMissingImports]
        from lmxlab.training.config import TrainConfig  # pyright: ignore[reportMissingImports]
        from lmxlab.training.trainer import Trainer  # pyright: ignore[reportMissingImports]

        s = task.shape
        if s.head_dim * s.n_heads != s.d_model or s.eps != 1e-5:
            raise ConfigError("lmxlab's llama has heads of d_model / n_heads and norms with eps=1e-5")
        config = llama_config(
            vocab_size=s.vocab_size,
            d_model=s.d_model,
            n_heads=s.n_heads,
            n_kv_heads=s.n_kv_heads,
            n_layers=s.n_layers,
            d_ff=s.d_ff,
            max_seq_len=s.seq_len,
            rope_theta=s.rope_theta,
            tie_embeddings=True,
        )
        super().__init__(task, LanguageModel(config))
        self._make_trainer = lambda compile_step: Trainer(
            self.model,
            TrainConfig(max_grad_norm=task.max_grad_norm or 0.0, batch_size=task.batch_size, compile_step=compile_step),
            optimizer=self.adamw(clips=False),
        )
        self._trainer: Any = None

    def rename(self, name: str) -> str:
        for ours, theirs in (
            ("embedding.embed_tokens", "embed"),
            ("layers.", "blocks."),
            ("self_attn", "attention"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("mlp.gate_proj", "ffn.gate"),
            ("mlp.up_proj", "ffn.up"),
            ("mlp.down_proj", "ffn.down"),
        ):
            name = name.replace(ours, theirs)
        return f"final_{name}" if name.startswith("norm.") else name

    def run(self, n_steps: int) -> list[float]:
        if self._trainer is None:
            self.cast()
            self._trainer = self._make_trainer(True)
            try:
                return self._steps(n_steps)
            except ValueError as error:
                if "uncaptured inputs" not in str(error):
                    raise
            # It captures a copy of the parameters, which MLX refuses; the failed trace stays in the model.
            self.note = " ".join(filter(None, [self.note, "uncompiled: MLX refuses its compiled step"]))
            self.load(self.task.weights)
            self.cast()
            self._trainer = self._make_trainer(False)
        return self._steps(n_steps)

    def _steps(self, n_steps: int) -> list[float]:
        losses = []
        for _ in range(n_steps):
            batch = self.task.source.batch(self.n_done)
            losses.append(self._trainer.train_step((mx.array(batch.inputs), mx.array(batch.targets)))["loss"])
            self.n_done += 1
        return losses

    def loss(self, batch: Any) -> float:
        logits, _ = self.model(mx.array(batch.inputs))
        return number(nn.losses.cross_entropy(logits, mx.array(batch.targets), reduction="mean"))


def _with_lengths(batch: Any) -> tuple[mx.array, mx.array]:
    """``(B, L + 1)`` tokens, and for each sequence from where to where its targets count."""
    tokens = np.concatenate([batch.inputs, batch.targets[:, -1:]], axis=1)
    return mx.array(tokens), mx.array([[0, batch.targets.shape[1]]] * len(tokens))
