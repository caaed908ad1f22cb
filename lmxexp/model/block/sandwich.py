"""Norms before and after the sublayers."""

from typing import Any

import mlx.core as mx

from lmxexp.interfaces import Aux, Factory, Shared
from lmxexp.model.block.residual import ResidualBlock
from lmxexp.ops.rms_norm import added


class Sandwich(ResidualBlock):
    """``x + norm(f(norm(x)))`` for the mixer, then for the feed-forward.

    Source: Ding et al. 2021, "CogView", section 2.4 (Sandwich-LN); Gemma Team 2024, "Gemma 2".
    """

    def make_norms(self, d_model: int, norm: Factory) -> None:
        if self.self_attn is not None:
            self.input_layernorm = norm(d_model)
            self.post_attention_layernorm = norm(d_model)
        if self.mlp is not None:
            self.pre_feedforward_layernorm = norm(d_model)
            self.post_feedforward_layernorm = norm(d_model)

    def __call__(
        self,
        x: mx.array,
        *,
        cache: Any = None,
        segment_ids: mx.array | None = None,
        shared: Shared | None = None,
    ) -> tuple[mx.array, Aux]:
        aux: Aux = {}
        if self.self_attn is not None:
            x, h = self.branch(self.input_layernorm, x)
            y = self.mix(h, cache, segment_ids, shared)
            x = added(x, self.dropout(self.post_attention_layernorm(y)))
        if self.mlp is not None:
            x, h = self.branch(self.pre_feedforward_layernorm, x)
            y, aux = self.mlp(h)
            x = added(x, self.dropout(self.post_feedforward_layernorm(y)))
        return x, aux
