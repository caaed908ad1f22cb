"""Sophia: a clipped step along the momentum, by a diagonal of the curvature that is estimated now and then."""

from __future__ import annotations

import mlx.core as mx
from mlx.utils import tree_map

from lmxexp.interfaces import ConfigError, Schedule
from lmxexp.optim.checks import check_betas, check_positive
from lmxexp.optim.full_precision import FullPrecision, zeros


class Sophia(FullPrecision):
    """Sophia-G: the momentum divided by the curvature, each number of the quotient clipped to [-1, 1].

    Where the curvature is large the step is Newton's, damped; where it is small, or negative in truth, it is the
    sign's. The curvature is the diagonal of the Gauss-Newton matrix, estimated on every ``estimate_every``-th step from
    the gradient of the loss of labels that the model itself draws (`observe`; the training step computes it, see
    `lmxexp.optim.curvature`). That gradient takes a forward and backward pass of its own: about a tenth of all of them
    at the default.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar; about that of Lion, or AdamW's times
            3 to 5 by the paper's way of tuning.
        betas: How much of the gradient's mean, and of the curvature's, stays; in [0, 1).
        clip: Called gamma (in the authors' code rho): the larger, the fewer numbers are clipped. The paper tunes it
            for 10 % to 50 % of the numbers not to be.
        eps: What the curvature times ``clip`` is at least.
        estimate_every: Steps from one estimate to the next.
        weight_decay: Decoupled decay of matrices, see `lmxexp.optim.roles`.

    Raises:
        ConfigError: A setting is outside its range.

    Source: H. Liu et al., 2023, Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training,
        https://arxiv.org/abs/2305.14342, algorithm 3 with the Gauss-Newton-Bartlett estimator of algorithm 2; defaults
        as in the authors' code.
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        betas: list[float] = [0.965, 0.99],  # noqa: B006 - never changed
        clip: float = 0.04,
        eps: float = 1e-12,
        estimate_every: int = 10,
        weight_decay: float = 0.2,
    ):
        super().__init__(learning_rate, weight_decay)
        self.betas = check_betas(betas)
        self.clip, self.eps = check_positive("clip", clip), check_positive("eps", eps)
        if estimate_every < 1 or estimate_every != int(estimate_every):
            raise ConfigError(f"estimate_every={estimate_every} must be a whole number, at least 1")
        self.estimate_every = estimate_every

    def moments(self, parameter: mx.array) -> dict[str, mx.array]:
        return {"m": zeros(parameter), "h": zeros(parameter)}

    def observe(self, gradient: dict, n_targets: mx.array) -> None:
        """Take in the gradient of the mean loss of ``n_targets`` labels that the model drew; changes the state."""
        beta2 = self.betas[1]

        def mean(g: mx.array, state: dict[str, mx.array]) -> None:
            estimate = mx.square(g.astype(mx.float32)) * n_targets
            state["h"] = state["h"] * beta2 + estimate * (1 - beta2)

        tree_map(mean, gradient, self.state)

    def change(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        beta1 = self.betas[0]
        state["m"] = state["m"] * beta1 + gradient * (1 - beta1)
        least = self.once_a_step("least", lambda: mx.ones(()) * self.eps)
        step = state["m"] / mx.maximum(state["h"] * self.clip, least)
        return mx.clip(step, -1.0, 1.0) * self.learning_rate
