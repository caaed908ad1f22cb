"""Lion: the sign of a momentum."""

from __future__ import annotations

import mlx.core as mx

from lmxexp.interfaces import Schedule
from lmxexp.optim.checks import check_betas
from lmxexp.optim.full_precision import FullPrecision, zeros


class Lion(FullPrecision):
    """Moves every number by exactly the learning rate, in the direction of a momentum's sign.

    One array of state instead of Adam's two. The paper advises a learning rate 3 to 10 times below AdamW's and a
    weight decay as many times above. MLX's Lion decays vectors too.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar.
        betas: How much of the momentum counts in the direction, and how much of it stays; in [0, 1).
        weight_decay: Decoupled decay of matrices, see `lmxexp.optim.roles`.

    Raises:
        ConfigError: A setting is outside its range.

    Source: X. Chen et al., 2023, Symbolic Discovery of Optimization Algorithms, https://arxiv.org/abs/2302.06675,
        algorithm 2.
    """

    elementwise = True

    moves = "entrywise"

    def __init__(
        self,
        learning_rate: float | Schedule,
        betas: list[float] = [0.9, 0.99],  # noqa: B006 - never changed
        weight_decay: float = 0.3,
    ):
        super().__init__(learning_rate, weight_decay)
        self.betas = check_betas(betas)

    def moments(self, parameter: mx.array) -> dict[str, mx.array]:
        return {"m": zeros(parameter)}

    def change(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        beta1, beta2 = self.betas
        direction = mx.sign(state["m"] * beta1 + gradient * (1 - beta1))
        state["m"] = state["m"] * beta2 + gradient * (1 - beta2)
        return direction * self.learning_rate
