"""Adam-mini: Adam with one second moment for each output neuron."""

from __future__ import annotations

import mlx.core as mx
from mlx.utils import tree_map_with_path

from lmxexp.optim.adamw import AdamW
from lmxexp.optim.full_precision import zeros
from lmxexp.optim.roles import is_stack


class AdamMini(AdamW):
    """AdamW that keeps one mean square for a block of numbers, the mean over the block: half of Adam's state.

    A block is a row of a matrix: an output neuron, or a token of the embedding and of the head. Of a convolution it is
    an output channel. Biases have plain Adam, and every other parameter of one axis (norms) is a block. So ``v`` has
    the parameter's shape with 1 for the axes that are averaged.

    These are the authors' blocks but for queries and keys. There they have heads, whose number an optimizer does not
    know; rows are finer, and nearer to Adam.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar; the paper takes AdamW's.
        betas: How much of the mean, and of the mean square, stays at each step; in [0, 1).
        eps: Added to the root mean square.
        weight_decay: Decoupled decay of matrices, see `lmxexp.optim.roles`.

    Raises:
        ConfigError: A setting is outside its range.

    Source: Y. Zhang et al., 2024, Adam-mini: Use Fewer Learning Rates To Gain More, https://arxiv.org/abs/2406.16793,
        with the blocks of the authors' later code (version 1.1.1). The paper's first version had plain Adam for
        embedding and head, and one block for each of the other matrices but queries and keys.
    """

    def init(self, parameters: dict) -> None:
        super().init(parameters)
        tree_map_with_path(self._init_blocks, parameters, self.state)

    def init_single(self, parameter: mx.array, state: dict[str, mx.array]) -> None:
        pass  # what a block is depends on the name, see `_init_blocks`

    def _init_blocks(self, path: str, parameter: mx.array, state: dict[str, mx.array]) -> None:
        if not state:
            state.update({"m": zeros(parameter), "v": mx.zeros(_blocks(path, parameter), mx.float32)})

    def change(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        beta1, beta2 = self.betas
        averaged = [axis for axis, size in enumerate(state["v"].shape) if size == 1]
        mean_square = mx.square(gradient).mean(axis=averaged, keepdims=True)
        state["m"] = state["m"] * beta1 + gradient * (1 - beta1)
        state["v"] = state["v"] * beta2 + mean_square * (1 - beta2)
        rate, correction = self.rate_and_correction()
        root_mean_square = mx.sqrt(state["v"]) * correction
        return state["m"] * rate / (root_mean_square + self.eps)


def _blocks(path: str, parameter: mx.array) -> list[int]:
    """The parameter's shape, with 1 for the axes that lie within a block."""
    if path.split(".")[-1] == "bias":
        return list(parameter.shape)
    n_outer = parameter.ndim - 1 if is_stack(path, parameter) else min(1, parameter.ndim - 1)
    return [size if axis < n_outer else 1 for axis, size in enumerate(parameter.shape)]
