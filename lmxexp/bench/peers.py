"""Other trainers beside lmxexp's: which there are, what they can be compared in, and that they do the same work."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from omegaconf import DictConfig

from lmxexp.bench.measure import Contestant
from lmxexp.bench.own import OwnStep
from lmxexp.bench.shape import Shape
from lmxexp.build import build
from lmxexp.ops.trees import number
from lmxexp.optim.build import leaf_optimizers

PACKAGES = {"torch": "torch", "mlx_lm": "mlx_lm", "lmxlab": "lmxlab"}
"""What each peer has to import."""

LOSS_TOLERANCE = 1e-4
"""Nats between two losses of one model in fp32."""

STEP_TOLERANCE = {"fp32": 2e-3, "mixed": 3e-2, "bf16": 3e-2}
"""Nats between the losses of the first training steps, by precision. Adam divides small gradients by their size, so
what rounding changes of them is not small any more."""

N_AGREEING_STEPS = 3
"""The first training steps, whose losses are compared."""

_OF_A_LLAMA = {
    "model": ("llama",),
    "attention": ("gqa", "mha", "mqa"),
    "norm": ("rmsnorm",),
    "norm@embedding_norm": ("none",),
    "position": ("rope",),
    "ffn": ("swiglu",),
    "block": ("pre_norm",),
    "embedding": ("tied",),
    "qk_norm": ("none",),
    "value_residual": ("none",),
    "softcap@logit_softcap": ("none",),
    "softcap@score_softcap": ("none",),
    "loss": ("cross_entropy",),
    "optim": ("adamw",),
    "param_groups": ("none",),
}
"""The choices that every peer can follow."""


class Disagreement(RuntimeError):
    """A peer does other work than lmxexp's step; its time would say nothing."""


@dataclass(frozen=True)
class Task:
    """What a peer is to do: lmxexp's step in plain numbers."""

    shape: Shape
    weights: dict[str, np.ndarray]
    """fp32, by their names in lmxexp's model."""
    n_params: int
    loud_loss: float
    """lmxexp's, see `loud`."""
    source: Any
    """`Source` of the batches."""
    batch_size: int
    precision: str
    peak_rate: float
    schedule: Callable[[Any], Any]
    """A step to the factor on the peak learning rate."""
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    max_grad_norm: float | None
    n_steps: int
    """In all."""

    def rates(self) -> list[float]:
        """The learning rate of each step."""
        return [self.peak_rate * number(self.schedule(mx.array(i))) for i in range(self.n_steps)]


def installed(peer: str) -> bool:
    """Whether the package that a peer stands for can be found; it is not imported."""
    return importlib.util.find_spec(PACKAGES[peer]) is not None


def unsupported(cfg: DictConfig, own: OwnStep) -> str | None:
    """Why no peer does this work, in the words that chose it; None: they do."""
    for key, possible in _OF_A_LLAMA.items():
        if cfg.choice.get(key) not in possible:
            return f"peers have no {key}={cfg.choice.get(key)}"
    if cfg.model.dropout:
        return f"peers have no model.dropout={cfg.model.dropout}"
    if own.settings.parts > 1:
        return f"peers have no train.n_micro={own.settings.parts}"
    if any(getattr(leaf, "rate_factors", None) is not None for leaf in leaf_optimizers(own.optimizer)):
        return f"peers have no init={cfg.choice.get('init')}, which has learning rates of its own"
    return None


def task_of(cfg: DictConfig, own: OwnStep, n_steps: int) -> Task:
    """The work of a configuration that is not `unsupported`. Before the first step: it takes the weights along.

    What it cannot say (a position that turns a part of each head, say) shows in the loss.

    Args:
        n_steps: that will be taken in all.
    """
    weights = own.fp32_weights()
    attention = own.model.layers[0].self_attn
    n_heads, n_kv_heads = attention.n_heads, attention.n_kv_heads
    d_ff, d_model = weights["layers.0.mlp.up_proj.weight"].shape
    shape = Shape(
        vocab_size=own.model.vocab_size,
        d_model=d_model,
        n_layers=len(own.model.layers),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=weights["layers.0.self_attn.q_proj.weight"].shape[0] // n_heads,
        d_ff=d_ff,
        seq_len=own.settings.seq_len,
        rope_theta=cfg.model.position.attention.theta,
        eps=cfg.model.norm.eps,
    )
    return Task(
        shape=shape,
        weights=weights,
        n_params=own.n_params(),
        loud_loss=loud_loss(own, weights, own.source.batch(0)),
        source=own.source,
        batch_size=own.settings.batch_size,
        precision=own.precision,
        peak_rate=cfg.optim.learning_rate,
        schedule=build(cfg.schedule),
        betas=tuple(cfg.optim.betas),
        eps=cfg.optim.eps,
        weight_decay=cfg.optim.weight_decay,
        max_grad_norm=own.settings.max_grad_norm,
        n_steps=n_steps,
    )


def makers(peer: str) -> dict[str, Callable[[Task], Contestant]]:
    """The contestants of an installed peer, by name; imports its package."""
    if peer == "torch":
        from lmxexp.bench.peer_torch import TorchStep

        return {
            "torch eager": lambda task: TorchStep(task, compile=False),
            "torch.compile": lambda task: TorchStep(task, compile=True),
        }
    from lmxexp.bench import peer_mlx

    return {peer: {"mlx_lm": peer_mlx.MlxLmStep, "lmxlab": peer_mlx.LmxlabStep}[peer]}


def check_same_model(peer: Contestant, task: Task) -> None:
    """Compare the number of parameters, and the loss at the same weights. Before the first step.

    Raises:
        Disagreement: they differ.
    """
    if peer.n_params() != task.n_params:
        raise Disagreement(f"not the same model: {peer.n_params():,} parameters, lmxexp's has {task.n_params:,}")
    loss = loud_loss(peer, task.weights, task.source.batch(0))
    if not abs(loss - task.loud_loss) <= LOSS_TOLERANCE:
        raise Disagreement(f"not the same model: loss {loss:.6f} at the same weights, lmxexp's is {task.loud_loss:.6f}")


def loud_loss(contestant: Contestant, weights: dict[str, np.ndarray], batch: Any) -> float:
    """Its loss with `loud` weights; it is left with ``weights``."""
    contestant.load(loud(weights))
    try:
        return contestant.loss(batch)
    finally:
        contestant.load(weights)


def loud(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Random weights of the same shapes, with which each part counts in the loss: as a model is initialised, it hardly
    shows what attention does. Exact in bf16."""
    generator = np.random.default_rng(0)
    found = {}
    for name, a in weights.items():
        x = generator.normal(0.0, a.shape[-1] ** -0.5, a.shape) if a.ndim > 1 else generator.uniform(0.5, 1.5, a.shape)
        found[name] = (x.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    return found


def check_same_steps(losses: list[float], own: list[float], precision: str) -> None:
    """Compare the losses of the first training steps: that optimizers do the same.

    Raises:
        Disagreement: they differ.
    """
    for i, (found, expected) in enumerate(zip(losses, own, strict=True)):
        if not abs(found - expected) <= STEP_TOLERANCE[precision]:
            raise Disagreement(f"not the same training: loss {found:.5f} at step {i}, lmxexp's is {expected:.5f}")
