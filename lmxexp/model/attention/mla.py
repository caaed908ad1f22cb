"""Multi-head latent attention."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import ConfigError, Factory
from lmxexp.model.attention.head_width import head_width
from lmxexp.model.attention.reach import Full
from lmxexp.model.position.rotated import rotated
from lmxexp.ops.attend import attend


class MultiHeadLatentAttention(nn.Module):
    """Softmax attention whose keys and values are read off one small latent vector a position.

    The cache holds the normalised latent and one key of ``rope_dim`` elements, shared by all heads, which alone carries
    the position: turning a key that is read off the latent would keep the cache from being the latent. So each
    head's query and key have two parts, without and with position, and scores are the sum of both parts'.

    Few new positions (decoding) never expand the cached latents to keys and values: the up-projection of keys is
    applied to the queries instead, that of values to what was found, and all heads attend to the latents themselves.
    The results are the same.

    Args:
        d_model: width of the input and output.
        n_heads: heads.
        norm: factory of the norms of the latents.
        layer_idx: not used.
        head_dim: width of a head's part without position; None: ``d_model / n_heads``.
        rope_dim: width of the part with position; None: ``head_dim / 2``, rounded down to an even number.
        v_dim: width of a head's value; None: ``head_dim``.
        kv_rank: width of the latent; None: ``4 head_dim``, as DeepSeek has it.
        q_rank: width of a latent that queries are read off as well; 0: none, queries are projected from the input;
            None: ``d_model / 4``.
        position: factory of a `Position`, called with ``rope_dim`` as its head; None: no positions. Where it has a
            ``score_scale`` (YaRN's ``mscale_all_dim``), the scores are multiplied by it.
        softcap: factory of a function on the scores; a factory that returns None leaves the slot empty.
        reach: how far back a position sees, see `lmxexp.model.attention.reach`; None: all the way.
        bias: whether the output projection has a bias.
        qkv_bias: whether the projections to the latents have one; None: as ``bias``. Those off the latents, and
            queries without a latent, have none.
        dropout: probability of dropping an attention weight in training.

    Shapes:
        ``(B, L, D) -> (B, L, D)``. ``q_proj``, or ``q_b_proj`` behind ``q_a_proj`` and ``q_a_layernorm``, gives
        ``(H, head_dim + rope_dim)`` a position, ``kv_a_proj_with_mqa`` gives ``kv_rank + rope_dim``, ``kv_b_proj``
        ``(H, head_dim + v_dim)``.

    Cost:
        Cache: ``kv_rank + rope_dim`` elements a position within reach. Mixing:
        ``2 n_heads (head_dim + rope_dim + v_dim)`` FLOPs a visible position.

    Raises:
        ConfigError: sizes that do not divide or are not positive.

    Source: DeepSeek-AI 2024, "DeepSeek-V2", section 2.1, eq. 9 to 19 (eq. 17's RoPE on decoupled queries and keys); the
        parameters' layout is that of the released code.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        norm: Factory,
        layer_idx: int = 0,
        head_dim: int | None = None,
        rope_dim: int | None = None,
        v_dim: int | None = None,
        kv_rank: int | None = None,
        q_rank: int | None = 0,
        position: Factory | None = None,
        softcap: Factory | None = None,
        reach: Full | None = None,
        bias: bool = False,
        qkv_bias: bool | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        head_dim = head_width(d_model, n_heads, head_dim)
        self.n_heads, self.head_dim = n_heads, head_dim
        self.rope_dim = max(2, head_dim // 4 * 2) if rope_dim is None else rope_dim
        self.v_dim = head_dim if v_dim is None else v_dim
        self.kv_rank = 4 * head_dim if kv_rank is None else kv_rank
        self.q_rank = max(1, d_model // 4) if q_rank is None else q_rank
        for key, least in {"rope_dim": 1, "v_dim": 1, "kv_rank": 1, "q_rank": 0}.items():
            if getattr(self, key) < least:
                raise ConfigError(f"model.attention.{key}={getattr(self, key)} must be at least {least}")
        self.dropout = dropout
        qkv_bias = bias if qkv_bias is None else qkv_bias
        q_width = n_heads * (head_dim + self.rope_dim)
        if self.q_rank:
            self.q_a_proj = nn.Linear(d_model, self.q_rank, bias=qkv_bias)
            self.q_a_layernorm = norm(self.q_rank)
            self.q_b_proj = nn.Linear(self.q_rank, q_width, bias=False)
        else:
            self.q_proj = nn.Linear(d_model, q_width, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(d_model, self.kv_rank + self.rope_dim, bias=qkv_bias)
        self.kv_a_layernorm = norm(self.kv_rank)
        self.kv_b_proj = nn.Linear(self.kv_rank, n_heads * (head_dim + self.v_dim), bias=False)
        self.o_proj = nn.Linear(n_heads * self.v_dim, d_model, bias=bias)
        self.position = position(head_dim=self.rope_dim, n_heads=n_heads) if position else None
        self.softcap = softcap() if softcap else None
        self.reach = reach or Full()
        self.scale = (head_dim + self.rope_dim) ** -0.5 * getattr(self.position, "score_scale", 1.0)

    def __call__(self, x: mx.array, *, cache: Any = None, segment_ids: mx.array | None = None) -> mx.array:
        B, L, _ = x.shape
        q, q_rope = mx.split(self._queries(x), [self.head_dim], axis=-1)
        latent, k_rope = mx.split(self.kv_a_proj_with_mqa(x), [self.kv_rank], axis=-1)
        latent, k_rope = self.kv_a_layernorm(latent)[:, None], k_rope[:, None]  # one head for all
        q_rope, k_rope = rotated(self.position, q_rope, k_rope, cache, segment_ids)
        if cache is not None:
            latent, k_rope = cache.update_and_fetch(latent, k_rope)
        mask = self.reach.with_segments(L, latent.shape[2], L if cache is None else cache.offset, segment_ids)
        # About where expanding all of the cache starts to cost less than attending to vectors of its full width.
        few = cache is not None and self.head_dim >= L
        attend_to = self._latents if few else self._keys_and_values
        y = attend_to(q, q_rope, latent, k_rope, mask)
        return self.o_proj(y.transpose(0, 2, 1, 3).reshape(B, L, -1))

    def _queries(self, x: mx.array) -> mx.array:
        """``(B, H, L, head_dim + rope_dim)``."""
        B, L, _ = x.shape
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))) if self.q_rank else self.q_proj(x)
        return q.reshape(B, L, self.n_heads, -1).transpose(0, 2, 1, 3)

    def _keys_and_values(self, q, q_rope, latent, k_rope, mask):
        """``(B, H, L, v_dim)``: the latents are expanded to every head's keys and values."""
        B, _, S, _ = latent.shape
        kv = self.kv_b_proj(latent[:, 0]).reshape(B, S, self.n_heads, -1).transpose(0, 2, 1, 3)
        k, v = mx.split(kv, [self.head_dim], axis=-1)
        k_rope = mx.broadcast_to(k_rope, (B, self.n_heads, S, self.rope_dim))
        return self._attend(mx.concatenate([q, q_rope], axis=-1), mx.concatenate([k, k_rope], axis=-1), v, mask)

    def _latents(self, q, q_rope, latent, k_rope, mask):
        """``(B, H, L, v_dim)``: queries are taken to the latents, and what was found there to values."""
        expand = self.kv_b_proj.weight.reshape(self.n_heads, -1, self.kv_rank)
        to_key, to_value = expand[:, : self.head_dim], expand[:, self.head_dim :]
        kept = mx.concatenate([latent, k_rope], axis=-1)
        found = self._attend(mx.concatenate([q @ to_key, q_rope], axis=-1), kept, kept, mask)
        return found[..., : self.kv_rank] @ to_value.swapaxes(-1, -2)

    def _attend(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
        """``(B, H, L, C), (B, K, S, C), (B, K, S, V)`` to ``(B, H, L, V)``."""
        bias = self.position.bias(q.shape[2], k.shape[2]) if self.position is not None else None
        dropout = self.dropout if self.training else 0.0
        return attend(q, k, v, scale=self.scale, mask=mask, bias=bias, softcap=self.softcap, dropout=dropout)

    def make_cache(self) -> Any:
        # The two that a position leaves behind, in place of keys and values.
        return self.reach.make_cache()

    def state_size(self, seq_len: int) -> int:
        return (self.kv_rank + self.rope_dim) * self.reach.kept(seq_len)

    def mixing_flops(self, seq_len: int) -> int:
        # Scores and weighted sum, as in training, where the latents are expanded (their expansion is a linear layer's).
        widths = self.head_dim + self.rope_dim + self.v_dim
        return 2 * self.n_heads * widths * self.reach.visible(seq_len) // seq_len
