"""Mamba: a selective state space in which every element of the state decays by itself."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import ConfigError, Factory
from lmxexp.model.attention.conv1d import DepthwiseConv1d
from lmxexp.model.attention.step_size import log_spaced_steps
from lmxexp.model.recompute import cheap
from lmxexp.model.recurrent_cache import RecurrentCache
from lmxexp.ops.exp import silu
from lmxexp.ops.selective_scan import selective_scan, selective_scan_flops


class Mamba1(nn.Module):
    """Every channel has a vector of states, which its input writes to and reads from.

    With x convolved over a few positions, ``dt, b, c`` projected from it and ``dt = softplus(dt_proj(dt) + dt_bias)``:
    ``S[d, n] <- exp(-dt[d] exp(A_log[d, n])) S[d, n] + dt[d] x[d] b[n]`` for channel d and state element n, and
    ``y[d] = S[d] c + D[d] x[d]``; then gated by ``silu(z)`` and projected.

    The recurrence starts as published, with nothing drawn: ``exp(A_log[d, n]) = n + 1``; step sizes evenly, in their
    logarithm, from 0.001 to 0.1 over the channels, where the paper's code draws them from that range; ``D`` at one.
    ``dt_proj`` is drawn like all other matrices by ``model.init``, and not from the paper's own law.

    Args:
        d_model: width of the input and output.
        layer_idx: place in the stack, counted from 0.
        expand: channels, in units of ``d_model``.
        d_state: states of a channel.
        dt_rank: rank of the projection to step sizes; None: ``d_model / 16``, rounded up.
        conv_width: positions that the convolution sees.
        chunk: positions that are computed at once; memory and speed depend on it, the result does not.
        norm: factory of a norm of ``dt``, ``b`` and ``c``, called with their widths, as in Jamba; None: none.
        bias: whether the projections in and out have biases.
        conv_bias: whether the convolution has one.

    Shapes:
        ``(B, L, D) -> (B, L, D)``.

    Cost:
        Cache: ``expand D (d_state + conv_width - 1)`` elements, whatever the length. Mixing, a position: about
        ``9 expand D d_state`` FLOPs, of which two are a product of matrices and the others are counted operation by
        operation, see `lmxexp.ops.selective_scan.selective_scan_flops`; and ``2 conv_width`` a channel.

    Raises:
        ConfigError: a rank or chunk below 1.

    Source: Gu & Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", section 3; the norms:
        Lieber et al. 2024, "Jamba", section 6.4.
    """

    def __init__(
        self,
        d_model: int,
        layer_idx: int = 0,
        expand: int = 2,
        d_state: int = 16,
        dt_rank: int | None = None,
        conv_width: int = 4,
        chunk: int = 256,
        norm: Factory | None = None,
        bias: bool = False,
        conv_bias: bool = True,
    ):
        super().__init__()
        if dt_rank is None:
            dt_rank = -(-d_model // 16)
        for key, value in {"dt_rank": dt_rank, "chunk": chunk}.items():
            if value < 1:
                raise ConfigError(f"attention.{key}={value} must be at least 1")
        d_inner = expand * d_model
        self.d_inner, self.d_state, self.dt_rank, self.expand, self.chunk = d_inner, d_state, dt_rank, expand, chunk
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=bias)
        self.conv1d = DepthwiseConv1d(d_inner, conv_width, conv_bias, layer_idx)
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_layernorm = norm(dt_rank) if norm else None
        self.b_layernorm = norm(d_state) if norm else None
        self.c_layernorm = norm(d_state) if norm else None
        self.dt_proj = nn.Linear(dt_rank, d_inner, bias=False)
        # Beside the layer and not in it: `model.init` would set it to zero.
        self.dt_bias = log_spaced_steps(d_inner)
        self.A_log = mx.broadcast_to(mx.log(mx.arange(1.0, d_state + 1.0)), (d_inner, d_state))
        self.D = mx.ones((d_inner,))
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)

    def __call__(self, x: mx.array, *, cache: Any = None, segment_ids: mx.array | None = None) -> mx.array:
        if cache is not None and segment_ids is not None:
            raise NotImplementedError("segment_ids together with a cache: decode one document at a time")
        conv, state = (None, None) if cache is None else (cache.get("conv"), cache.get("state"))
        x, z = mx.split(self.in_proj(x), 2, axis=-1)
        x, conv = self.conv1d(x, conv, segment_ids)
        x = silu(x)
        dt, b, c = mx.split(self.x_proj(x), [self.dt_rank, self.dt_rank + self.d_state], axis=-1)
        if self.dt_layernorm is not None and self.b_layernorm is not None and self.c_layernorm is not None:
            dt, b, c = self.dt_layernorm(dt), self.b_layernorm(b), self.c_layernorm(c)
        dt = nn.softplus(self.dt_proj(dt).astype(mx.float32) + self.dt_bias.astype(mx.float32))
        a = -mx.exp(self.A_log.astype(mx.float32))
        y, state = selective_scan(x, dt, a, b, c, state, segment_ids, self.chunk)
        if cache is not None:
            cache.update(x.shape[1], conv=conv, state=state)
        return self.out_proj(cheap(lambda y, x, z, D: (y + D * x) * silu(z), y, x, z, self.D))

    def make_cache(self) -> RecurrentCache:
        return RecurrentCache()

    def state_size(self, seq_len: int) -> int:
        return self.d_inner * self.d_state + self.conv1d.state_size()

    def mixing_flops(self, seq_len: int) -> int:
        scan = selective_scan_flops(seq_len, self.d_inner, self.d_state, self.chunk)
        return self.conv1d.flops() + scan // seq_len
