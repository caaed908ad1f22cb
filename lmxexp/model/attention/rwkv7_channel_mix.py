"""RWKV-7: channel mixing, a feed-forward that sees the position before."""

import mlx.core as mx
import mlx.nn as nn

from lmxexp.model.recurrent_cache import RecurrentCache
from lmxexp.ops.token_shift import token_shift


class RWKV7ChannelMix(nn.Module):
    """``down(relu(up(x + x_k * (x_before - x)))^2)``: an MLP on a mix of each position with the one before it.

    It keeps the last position from call to call, as no `FeedForward` does, and so is a `Mixer`: a layer of RWKV is two
    layers of the stack, time mixing and channel mixing, each with its norm and its residual, and no feed-forward.

    Args:
        d_model: width of the input and output.
        n_layers: layers in the stack; the initial mix depends on the depth.
        layer_idx: place in the stack, counted from 0.
        d_ff: hidden width; None: ``4 d_model``.

    Shapes:
        ``(B, L, D) -> (B, L, D)``.

    Cost:
        ``2 d_model d_ff`` weights. Cache: ``D`` elements. Mixing: a few products an element, counted as none.

    Source: Peng et al. 2025, "RWKV-7 Goose with Expressive Dynamic State Evolution", section 4.2. The two matrices are
        RWKV's ``key`` and ``value``, here named like those of every feed-forward.
    """

    def __init__(self, d_model: int, n_layers: int, layer_idx: int = 0, d_ff: int | None = None):
        super().__init__()
        self.d_ff = d_ff or 4 * d_model
        depth = min(layer_idx, n_layers - 1)  # a layer beyond the stack starts like its last
        self.x_k = 1.0 - (mx.arange(d_model) / d_model) ** ((1.0 - depth / n_layers) ** 4)
        self.up_proj = nn.Linear(d_model, self.d_ff, bias=False)
        self.down_proj = nn.Linear(self.d_ff, d_model, bias=False)

    def __call__(
        self, x: mx.array, *, cache: RecurrentCache | None = None, segment_ids: mx.array | None = None
    ) -> mx.array:
        if cache is not None and segment_ids is not None:
            raise NotImplementedError("segment_ids together with a cache: decode one document at a time")
        before, last = token_shift(x, cache.get("last") if cache else None, segment_ids)
        if cache is not None:
            cache.update(x.shape[1], last=last)
        return self.down_proj(nn.relu2(self.up_proj(x + self.x_k * (before - x))))

    def make_cache(self) -> RecurrentCache:
        return RecurrentCache()

    def state_size(self, seq_len: int) -> int:
        return self.x_k.size

    def mixing_flops(self, seq_len: int) -> int:
        return 0
