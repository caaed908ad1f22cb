"""Optimizers that want a second gradient now and then: of the loss of labels that the model draws itself."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import mlx.core as mx
from mlx.optimizers import MultiOptimizer, Optimizer

from lmxexp.interfaces import Batch, ConfigError
from lmxexp.model.language_model import LanguageModel
from lmxexp.ops.cross_entropy import cross_entropy
from lmxexp.ops.trees import number
from lmxexp.optim.build import leaf_optimizers


@runtime_checkable
class Curvature(Protocol):
    """An optimizer that estimates the loss's curvature from the gradient of `drawn_loss`.

    The training step hands it over before the update of every ``estimate_every``-th step, the first included.
    """

    estimate_every: int

    def observe(self, gradient: dict, n_targets: mx.array) -> None:
        """Take the estimate into the state.

        Args:
            gradient: of the mean over all targets, a tree as ``apply_gradients`` takes it. Its square, element by
                element and times ``n_targets``, has the diagonal of the Gauss-Newton matrix for its mean.
            n_targets: a scalar.
        """
        ...


def curved(optimizer: Optimizer) -> Any:
    """The first of an optimizer's groups that estimates the curvature, a `Curvature`; None: none does.

    Raises:
        ConfigError: two groups do, at different steps.
    """
    found = [leaf for leaf in leaf_optimizers(optimizer) if isinstance(leaf, Curvature)]
    if len(every := sorted({leaf.estimate_every for leaf in found})) > 1:
        raise ConfigError(
            f"optim.estimate_every={every[0]} and {every[1]} of two parameter groups: one estimate serves all groups, "
            "give them the same"
        )
    return found[0] if found else None


def is_due(leaf: Curvature, n_steps: mx.array) -> bool:
    """Whether the step that comes after ``n_steps`` begins with an estimate. Reads the count from the device."""
    return number(n_steps) % leaf.estimate_every == 0


def observe(optimizer: Optimizer, gradient: dict, n_targets: mx.array) -> None:
    """Hand every group that estimates the curvature its part of the gradient."""
    if isinstance(optimizer, MultiOptimizer):
        for group, own in zip(optimizer.optimizers, optimizer._split_dictionary(gradient), strict=True):
            observe(group, own, n_targets)
    elif isinstance(optimizer, Curvature):
        optimizer.observe(gradient, n_targets)


def drawn_loss(model: LanguageModel, batch: Batch) -> tuple[mx.array, mx.array]:
    """Mean negative log-likelihood of labels drawn from the model's own distribution, and the number of targets.

    The labels are constants to a gradient. Losses beside the likelihood, such as one that balances experts, are left
    out: the Gauss-Newton matrix is the likelihood's.
    """
    h, _ = model.hidden(batch.inputs, segment_ids=batch.segment_ids)
    logits = model.logits(h)
    labels = mx.random.categorical(mx.stop_gradient(logits).astype(mx.float32))
    nll, _ = cross_entropy(logits, labels)
    weights = mx.ones_like(nll) if batch.weights is None else batch.weights
    n_targets = weights.sum()
    return (nll * weights).sum() / mx.maximum(n_targets, 1e-9), n_targets
