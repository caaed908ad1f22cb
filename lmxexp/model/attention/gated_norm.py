"""The norm at the end of Mamba-2."""

import mlx.core as mx
import mlx.nn as nn

from lmxexp.model.recompute import cheap
from lmxexp.ops.exp import silu


class GatedRMSNorm(nn.Module):
    """``rms_norm(y * silu(gate))``: gated first, then normalised in each group of channels by itself.

    Args:
        dims: width.
        n_groups: groups of channels; divides ``dims``.
        eps: added to the mean square.

    Shapes:
        ``(..., dims), (..., dims) -> (..., dims)``.

    Source: Dao & Gu 2024, "Transformers are SSMs", sections 7.1 and 7.2 (the place of the norm; its groups).
    """

    def __init__(self, dims: int, n_groups: int = 1, eps: float = 1e-5):
        super().__init__()
        self.n_groups, self.eps = n_groups, eps
        self.weight = mx.ones((dims,))

    def __call__(self, y: mx.array, gate: mx.array) -> mx.array:
        return cheap(self._normalised, y, gate, self.weight)

    def _normalised(self, y: mx.array, gate: mx.array, weight: mx.array) -> mx.array:
        gated = y.astype(mx.float32) * silu(gate.astype(mx.float32))
        groups = gated.reshape(*y.shape[:-1], self.n_groups, y.shape[-1] // self.n_groups)
        return weight * mx.fast.rms_norm(groups, None, self.eps).reshape(y.shape).astype(y.dtype)
