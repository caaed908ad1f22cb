"""Softmax attention over all positions: multi-head, grouped-query and multi-query."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import ConfigError, Factory, Shared
from lmxexp.model.attention.reach import Full
from lmxexp.model.position.rope import RoPE
from lmxexp.model.position.rotated import rotated
from lmxexp.ops.attend import attend
from lmxexp.ops.joined import can_be_joined, joined_product
from lmxexp.ops.rope import takes, turned_heads


class GroupedQueryAttention(nn.Module):
    """Softmax attention in which ``n_heads`` queries share ``n_kv_heads`` keys and values.

    ``n_kv_heads = n_heads`` is multi-head attention, ``n_kv_heads = 1`` multi-query attention.

    Args:
        d_model: width of the input and output.
        n_heads: query heads.
        n_kv_heads: key and value heads; divides ``n_heads``.
        layer_idx: place in the stack, counted from 0.
        head_dim: width of a head; None: ``d_model / n_heads``.
        position: factory of a `Position`; None: no positions.
        qk_norm: factory of a norm of ``(B, L, H, C)``, called with ``head_dim`` and ``n_heads`` for queries and for
            keys; a factory that returns None leaves the slot empty.
        softcap: factory of a function on the scores; likewise.
        reach: how far back a position sees, see `lmxexp.model.attention.reach`; None: all the way.
        gate: factory of a gate on the output, see `OutputGate`, or None.
        sinks: factory of learned sinks, see `Sinks`, or None.
        value_residual: factory of what mixes the values with those of the first such layer; likewise.
        bias: whether the output projection has a bias.
        qkv_bias: whether the other three have one; None: as ``bias``.
        dropout: probability of dropping an attention weight in training.
        scale: what the scores are multiplied by; None: ``head_dim ** -0.5``.

    Shapes:
        ``(B, L, D) -> (B, L, D)``.

    Cost:
        Cache: ``2 n_kv_heads head_dim`` elements a position within reach. Mixing: ``4 n_heads head_dim`` FLOPs a
        visible position.

    Raises:
        ConfigError: sizes that do not divide.

    Source: Ainslie et al. 2023, "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints";
        Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need"; Vaswani et al. 2017.
    """

    of_one_input = "q_proj", "k_proj", "v_proj"

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        layer_idx: int = 0,
        head_dim: int | None = None,
        position: Factory | None = None,
        qk_norm: Factory | None = None,
        softcap: Factory | None = None,
        reach: Full | None = None,
        gate: Factory | None = None,
        sinks: Factory | None = None,
        value_residual: Factory | None = None,
        bias: bool = False,
        qkv_bias: bool | None = None,
        dropout: float = 0.0,
        scale: float | None = None,
    ):
        super().__init__()
        if n_heads < 1 or n_kv_heads < 1 or n_heads % n_kv_heads:
            raise ConfigError(f"model.n_heads={n_heads} must be a multiple of model.n_kv_heads={n_kv_heads}")
        if head_dim is None:
            if d_model % n_heads:
                raise ConfigError(
                    f"model.d_model={d_model} must be a multiple of model.n_heads={n_heads}, or set model.head_dim"
                )
            head_dim = d_model // n_heads
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.scale = head_dim**-0.5 if scale is None else scale
        self.dropout = dropout
        qkv_bias = bias if qkv_bias is None else qkv_bias
        self.q_proj = nn.Linear(d_model, n_heads * head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(d_model, n_kv_heads * head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(d_model, n_kv_heads * head_dim, bias=qkv_bias)
        self.o_proj = nn.Linear(n_heads * head_dim, d_model, bias=bias)
        self.position = position(head_dim=head_dim, n_heads=n_heads) if position else None
        self.q_norm = qk_norm(head_dim=head_dim, n_heads=n_heads) if qk_norm else None
        self.k_norm = qk_norm(head_dim=head_dim, n_heads=n_kv_heads) if qk_norm else None
        self.softcap = softcap() if softcap else None
        self.reach = reach or Full()
        self.gate = gate(d_model=d_model, width=n_heads * head_dim, bias=qkv_bias) if gate else None
        self.sinks = sinks(n_heads=n_heads) if sinks else None
        # The first layer has nothing to mix in.
        self.value_residual = value_residual() if value_residual and layer_idx > 0 else None
        self.takes_shared = True

    def __call__(
        self,
        x: mx.array,
        *,
        cache: Any = None,
        segment_ids: mx.array | None = None,
        shared: Shared | None = None,
    ) -> mx.array:
        B, L, _ = x.shape
        at_once = self._rotated_at_once(x) if cache is None else None
        q, k, v = at_once or self._project(x)
        if shared is not None:
            first = shared.setdefault("first_values", v)
            if self.value_residual is not None:
                v = self.value_residual(v, first)
        if at_once is None:
            q, k = rotated(self.position, q, k, cache, segment_ids)
        if cache is not None:
            k, v = cache.update_and_fetch(k, v)
        end = L if cache is None else cache.offset
        y = self._attend(q, k, v, self.reach.with_segments(L, k.shape[2], end, segment_ids))
        y = (y if L == 1 else y.transpose(0, 2, 1, 3)).reshape(B, L, -1)
        return self.o_proj(y if self.gate is None else self.gate(y, x))

    def _rotated_at_once(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array] | None:
        """What `_project` and `rotated` give, of one product and one kernel; None: it is not to be had so."""
        layers, position = (self.q_proj, self.k_proj, self.v_proj), self.position
        if type(position) is not RoPE or not position.is_plain or self.q_norm is not None:
            return None
        if not (takes(self.head_dim, x.dtype) and can_be_joined(x, *layers)):
            return None
        return turned_heads(joined_product(x, layers), self.n_heads, self.n_kv_heads, position.theta)

    def _project(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """``(B, L, D)`` to queries ``(B, H, L, C)`` and keys and values ``(B, K, L, C)``, before positions."""
        B, L, _ = x.shape
        q, k, v, C = self.q_proj(x), self.k_proj(x), self.v_proj(x), self.head_dim
        if L == 1 and self.q_norm is None:  # heads of one position lie in either order: less to do in decoding
            return q.reshape(B, -1, 1, C), k.reshape(B, -1, 1, C), v.reshape(B, -1, 1, C)
        q = q.reshape(B, L, self.n_heads, C)
        k = k.reshape(B, L, self.n_kv_heads, C)
        v = v.reshape(B, L, self.n_kv_heads, C)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q.transpose(0, 2, 1, 3), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)

    def _attend(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
        """``(B, H, L, C)``, what each query takes from the values."""
        return attend(
            q,
            k,
            v,
            scale=self.scale,
            mask=mask,
            bias=self.position.bias(q.shape[2], k.shape[2]) if self.position is not None else None,
            softcap=self.softcap,
            sinks=self.sinks.weight if self.sinks is not None else None,
            dropout=self.dropout if self.training else 0.0,
        )

    def make_cache(self) -> Any:
        return self.reach.make_cache()

    def state_size(self, seq_len: int) -> int:
        return 2 * self.n_kv_heads * self.head_dim * self.reach.kept(seq_len)

    def mixing_flops(self, seq_len: int) -> int:
        # Scores and weighted sum.
        return 4 * self.n_heads * self.head_dim * self.reach.visible(seq_len) // seq_len
