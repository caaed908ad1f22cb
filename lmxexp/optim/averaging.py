"""Optimizers that are evaluated elsewhere than they train."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from mlx.optimizers import MultiOptimizer, Optimizer
from mlx.utils import tree_map_with_path

from lmxexp.ops.trees import by_path


@runtime_checkable
class Averaging(Protocol):
    """An optimizer whose parameters are where gradients are taken, and not where the model is best.

    Evaluation, samples and exports use `evaluated`; training and checkpoints go on with the parameters themselves. Of
    an optimizer that may have several groups, the function `evaluated` of this module asks each group.
    """

    def evaluated(self, parameters: dict) -> dict:
        """From the trained parameters and the optimizer's state, the parameters to evaluate, sample and export with.

        Args:
            parameters: a tree of trained parameters as ``apply_gradients`` returned it last, or, before the first
                step, as ``init`` was given it.

        Returns:
            A new tree of the same structure, shapes and types. Nothing is changed, neither the arguments nor the state,
            and nothing evaluated: it can be traced and mapped.
        """
        ...


def evaluated(optimizer: Optimizer, parameters: dict) -> dict:
    """The parameters to evaluate with, of any optimizer: `Averaging` ones' own, of others the parameters as they are.

    A `MultiOptimizer` gives each of its groups, which may be of several groups again, the parameters that are its own.

    Args:
        optimizer: initialised for ``parameters``.
        parameters: a tree of trained parameters.

    Returns:
        A tree of the same structure, shapes and types.
    """
    if isinstance(optimizer, Averaging):
        return optimizer.evaluated(parameters)
    if not isinstance(optimizer, MultiOptimizer):
        return parameters
    found: dict[str, Any] = {}
    for group, own in zip(optimizer.optimizers, optimizer._split_dictionary(parameters), strict=True):
        found |= by_path(evaluated(group, own))
    return tree_map_with_path(lambda path, _: found[path], parameters)


def averages(optimizer: Optimizer) -> bool:
    """Whether `evaluated` gives other parameters than it is given."""
    if isinstance(optimizer, MultiOptimizer):
        return any(averages(group) for group in optimizer.optimizers)
    return isinstance(optimizer, Averaging)
