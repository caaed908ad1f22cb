"""Several residual streams, mixed by learned weights."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import Aux, ConfigError, Factory, Shared
from lmxexp.model.block.residual import ResidualBlock


class HyperConnections(ResidualBlock):
    """Pre-norm sublayers between ``n_streams`` residual streams instead of one.

    A sublayer f reads a weighted sum of the streams; each stream goes on as a weighted sum of them all, plus its
    share of what f gives:

        streams_j <- sum_i A_ij streams_i + b_j f(norm(sum_i a_i streams_i))

    The weights are learned constants, and where ``dynamic`` a small function of the streams is added to them. They
    start so that every stream is the residual stream of a pre-norm block. The first layer makes the streams, as copies;
    the last adds them up; between layers they stand side by side in ``(B, L, n_streams D)``. So all layers of a
    stack must be of this kind.

    Args:
        d_model: width.
        layer_idx: place in the stack, counted from 0. From ``n_layers`` on a layer stands alone, outside the stack: it
            makes streams and adds them up itself.
        mixer: factory of a `Mixer`; None, or one that builds None: no mixer.
        ffn: factory of a `FeedForward`; likewise.
        norm: factory of a norm over ``d_model``.
        n_layers: layers of the stack.
        n_streams: n; 1 leaves one stream with learned weights.
        dynamic: whether weights depend on the streams.
        dropout: probability of dropping an element of a sublayer's output in training.

    Shapes:
        ``(B, L, n D) -> (B, L, n D)``; into the first layer and out of the last ``(B, L, D)``.

    Cost:
        ``n (n + 2)`` weights a sublayer, and where dynamic ``D (n + 2)`` and a norm. Mixing the streams takes
        ``2 n (n + 1) D`` FLOPs, the dynamic weights as many with n + 2 for n + 1. Activations of the residual stream
        are n times as large.

    Raises:
        ConfigError: no stream; a layer of another kind before this one.

    Source: Zhu et al. 2024, "Hyper-Connections", eqs. 1-13 and algorithms 2 and 3 (static and dynamic). The dynamic
        part has factors of its own for A with a, and for b, that start at 0.01, as there.
    """

    def __init__(
        self,
        d_model: int,
        layer_idx: int,
        mixer: Factory | None,
        ffn: Factory | None,
        norm: Factory,
        n_layers: int,
        n_streams: int = 4,
        dynamic: bool = True,
        dropout: float = 0.0,
    ):
        if n_streams < 1:
            raise ConfigError(f"model.block.n_streams={n_streams} must be at least 1")
        super().__init__(d_model, layer_idx, mixer, ffn, norm, dropout)
        self.d_model, self.n_streams = d_model, n_streams
        self.makes_streams = layer_idx == 0 or layer_idx >= n_layers
        self.adds_up = layer_idx >= n_layers - 1
        dynamic_norm = norm if dynamic else None
        if self.self_attn is not None:
            self.mixer_connection = Connection(d_model, n_streams, 2 * layer_idx, dynamic_norm)
        if self.mlp is not None:
            self.ffn_connection = Connection(d_model, n_streams, 2 * layer_idx + 1, dynamic_norm)

    def make_norms(self, d_model: int, norm: Factory) -> None:
        if self.self_attn is not None:
            self.input_layernorm = norm(d_model)
        if self.mlp is not None:
            self.post_attention_layernorm = norm(d_model)

    def __call__(
        self,
        x: mx.array,
        *,
        cache: Any = None,
        segment_ids: mx.array | None = None,
        shared: Shared | None = None,
    ) -> tuple[mx.array, Aux]:
        B, L, width = x.shape
        n, D = self.n_streams, self.d_model
        if width != (D if self.makes_streams else n * D):
            raise ConfigError(
                "model.net.blocks: a layer before one with hyper-connections has none; give all that block"
            )
        streams = mx.broadcast_to(x[:, :, None], (B, L, n, D)) if self.makes_streams else x.reshape(B, L, n, D)
        aux: Aux = {}
        if self.self_attn is not None:
            h, kept, share = self.mixer_connection(streams)
            y = self.dropout(self.mix(self.input_layernorm(h), cache, segment_ids, shared))
            streams = (kept + share * y[:, :, None]).astype(x.dtype)
        if self.mlp is not None:
            h, kept, share = self.ffn_connection(streams)
            y, aux = self.mlp(self.post_attention_layernorm(h))
            streams = (kept + share * self.dropout(y)[:, :, None]).astype(x.dtype)
        return streams.sum(axis=2) if self.adds_up else streams.reshape(B, L, n * D), aux


class Connection(nn.Module):
    """One sublayer between the streams.

    Args:
        d_model: D.
        n_streams: n.
        sublayer_idx: place among all sublayers of the stack; the sublayer at first reads stream ``sublayer_idx mod n``.
        norm: factory of the norm of the streams that the dynamic weights are made from; None: no dynamic weights.

    Shapes:
        ``(B, L, n, D)`` to the sublayer's input ``(B, L, D)``, what the streams keep ``(B, L, n, D)`` and their shares
        of the output ``(B, L, n, 1)``, or ``(n, 1)`` if they are constant; the last two in fp32.
    """

    def __init__(self, d_model: int, n_streams: int, sublayer_idx: int, norm: Factory | None):
        super().__init__()
        self.d_model, n = d_model, n_streams
        read = mx.arange(n)[:, None] == sublayer_idx % n
        # Column 0: what the sublayer reads of each stream (a). The others: what each stream keeps of each (A).
        self.static_alpha = mx.concatenate([read.astype(mx.float32), mx.eye(n)], axis=1)
        self.static_beta = mx.ones((n,))
        if norm is not None:
            self.norm = norm(d_model)
            self.dynamic_alpha, self.dynamic_beta = mx.zeros((d_model, n + 1)), mx.zeros((d_model, 1))
            self.alpha_scale, self.beta_scale = mx.full((1,), 0.01), mx.full((1,), 0.01)

    def __call__(self, streams: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        # In fp32: weights are one and a few thousandths, which bf16 would round to one.
        fp32 = lambda a: a.astype(mx.float32)
        alpha, beta = fp32(self.static_alpha), fp32(self.static_beta)[:, None]
        if "norm" in self:
            normed = self.norm(streams)
            alpha = alpha + fp32(self.alpha_scale) * mx.tanh(fp32(normed @ self.dynamic_alpha))  # (B, L, n, n + 1)
            beta = beta + fp32(self.beta_scale) * mx.tanh(fp32(normed @ self.dynamic_beta))  # (B, L, n, 1)
        mixed = alpha.swapaxes(-1, -2) @ fp32(streams)  # (B, L, n + 1, D)
        return mixed[:, :, 0].astype(streams.dtype), mixed[:, :, 1:], beta

    def weight_flops(self) -> int:
        """FLOPs of a forward pass per position: mixing the streams, and making the dynamic weights."""
        n = self.static_beta.size
        mixing = 2 * n * (n + 1) * self.d_model
        return mixing + 2 * n * (n + 2) * self.d_model if "norm" in self else mixing
