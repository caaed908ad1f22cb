"""Mamba-2: a state space with one decay per head."""

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import ConfigError, Factory
from lmxexp.model.attention.conv1d import DepthwiseConv1d
from lmxexp.model.attention.step_size import log_spaced_steps
from lmxexp.model.recompute import cheap
from lmxexp.model.recurrent_cache import RecurrentCache
from lmxexp.ops.chunks import reset_at_documents
from lmxexp.ops.exp import silu
from lmxexp.ops.ssd import ssd, ssd_flops


class Mamba2(nn.Module):
    """A matrix per head that decays by a scalar and is written to and read from by the input.

    With ``x, b, c`` convolved over a few positions and ``dt = softplus(dt + dt_bias)``, all projected from the input:
    ``S <- exp(-dt exp(A_log)) S + dt x b^T`` and ``y = S c + D x``; then gated by ``z``, normalised and projected. In
    training, positions of a chunk meet in products of matrices.

    The recurrence starts as published, with nothing drawn: ``exp(A_log)`` evenly from 1 to 16 over the heads and step
    sizes evenly, in their logarithm, from 0.001 to 0.1, where the paper's code draws both from these ranges (so the
    heads forget at rates from 0.001 to 1.6 a position); ``D`` at one.

    Args:
        d_model: width of the input and output.
        n_heads: heads; divides ``expand d_model``.
        layer_idx: place in the stack, counted from 0.
        expand: width of all heads together, in units of ``d_model``; need not be whole.
        d_state: width of ``b`` and ``c``, which is the state's other side.
        n_groups: groups of heads that share ``b`` and ``c``; divides ``n_heads``.
        conv_width: positions that the convolution sees.
        chunk: positions that are computed at once; speed depends on it, the result does not.
        norm: factory of a norm that takes the gate as well, called with ``dims`` and ``n_groups``, see `GatedRMSNorm`;
            None: the gate alone.
        dt_limit: smallest and largest step size; others are clipped.
        bias: whether the projections have biases.
        conv_bias: whether the convolution has one.

    Shapes:
        ``(B, L, D) -> (B, L, D)``.

    Cost:
        Cache: ``expand D d_state + (conv_width - 1) (expand D + 2 n_groups d_state)`` elements, whatever the length.
        Mixing, a position: about ``4 expand D d_state + 2 chunk (expand D + n_groups d_state)`` FLOPs, see
        `lmxexp.ops.ssd.ssd_flops`, and ``2 conv_width`` a convolved channel.

    Raises:
        ConfigError: sizes that do not divide.

    Source: Dao & Gu 2024, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State
        Space Duality", sections 6 and 7.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        layer_idx: int = 0,
        expand: float = 2,
        d_state: int = 128,
        n_groups: int = 1,
        conv_width: int = 4,
        chunk: int = 64,
        norm: Factory | None = None,
        dt_limit: Sequence[float] = (0.0, math.inf),
        bias: bool = False,
        conv_bias: bool = True,
    ):
        super().__init__()
        d_inner = round(expand * d_model)
        if n_heads < 1 or d_inner % n_heads:
            raise ConfigError(
                f"attention.expand={expand} times model.d_model={d_model} must be a multiple of "
                f"attention.n_heads={n_heads}"
            )
        if n_groups < 1 or n_heads % n_groups:
            raise ConfigError(f"attention.n_heads={n_heads} must be a multiple of attention.n_groups={n_groups}")
        if chunk < 1:
            raise ConfigError(f"attention.chunk={chunk} must be at least 1")
        if len(dt_limit) != 2 or not 0 <= dt_limit[0] < dt_limit[1]:
            raise ConfigError(f"attention.dt_limit={list(dt_limit)} must be two numbers, ascending from 0 or more")
        self.n_heads, self.head_dim, self.d_inner = n_heads, d_inner // n_heads, d_inner
        self.d_state, self.n_groups, self.expand, self.chunk = d_state, n_groups, expand, chunk
        self.dt_limit = (float(dt_limit[0]), float(dt_limit[1]))
        d_conv = d_inner + 2 * n_groups * d_state
        self.in_proj = nn.Linear(d_model, d_inner + d_conv + n_heads, bias=bias)
        self.conv1d = DepthwiseConv1d(d_conv, conv_width, conv_bias, layer_idx)
        self.dt_bias = log_spaced_steps(n_heads)
        self.A_log = mx.log(mx.linspace(1.0, 16.0, n_heads))
        self.D = mx.ones((n_heads,))
        self.norm = norm(dims=d_inner, n_groups=n_groups) if norm else None
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)

    def __call__(self, x: mx.array, *, cache: Any = None, segment_ids: mx.array | None = None) -> mx.array:
        if cache is not None and segment_ids is not None:
            raise NotImplementedError("segment_ids together with a cache: decode one document at a time")
        B, L, _ = x.shape
        conv, state = (None, None) if cache is None else (cache.get("conv"), cache.get("state"))
        z, xbc, dt = mx.split(self.in_proj(x), [self.d_inner, self.d_inner + self.conv1d.channels], axis=-1)
        xbc, conv = self.conv1d(xbc, conv, segment_ids)
        x, b, c = mx.split(silu(xbc), [self.d_inner, self.d_inner + self.n_groups * self.d_state], axis=-1)
        y, state = self._recur(x, dt, b, c, state, segment_ids)
        if cache is not None:
            cache.update(L, conv=conv, state=state)
        y = y.reshape(B, L, self.d_inner)
        return self.out_proj(cheap(lambda y, z: y * silu(z), y, z) if self.norm is None else self.norm(y, z))

    def _recur(self, x, dt, b, c, state, segment_ids) -> tuple[mx.array, mx.array]:
        """The recurrence with step sizes and the skip around it: y ``(B, L, H, P)`` in the type of x, and the state."""
        B, L, _ = x.shape
        x = x.reshape(B, L, self.n_heads, self.head_dim)
        b, c = (a.reshape(B, L, self.n_groups, self.d_state) for a in (b, c))
        dt = nn.softplus(dt.astype(mx.float32) + self.dt_bias.astype(mx.float32))
        if self.dt_limit != (0.0, math.inf):
            dt = mx.clip(dt, *self.dt_limit)
        log_decay = -dt * mx.exp(self.A_log.astype(mx.float32))
        log_decay = reset_at_documents(log_decay.swapaxes(1, 2), segment_ids)
        assert log_decay is not None
        y, state = ssd((x * dt[..., None]).astype(x.dtype), log_decay.swapaxes(1, 2), b, c, state, self.chunk)
        return y + self.D[:, None] * x, state

    def make_cache(self) -> RecurrentCache:
        return RecurrentCache()

    def state_size(self, seq_len: int) -> int:
        return self.d_inner * self.d_state + self.conv1d.state_size()

    def mixing_flops(self, seq_len: int) -> int:
        recurrence = ssd_flops(seq_len, self.n_heads, self.head_dim, self.d_state, self.n_groups, self.chunk)
        return self.conv1d.flops() + recurrence // seq_len
