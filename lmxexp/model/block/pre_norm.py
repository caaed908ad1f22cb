"""Norms before the sublayers."""

from typing import Any

import mlx.core as mx

from lmxexp.interfaces import Aux, Factory, Shared
from lmxexp.model.block.residual import ResidualBlock
from lmxexp.ops.rms_norm import added


class PreNorm(ResidualBlock):
    """``x + f(norm(x))`` for the mixer, then for the feed-forward.

    Source: Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", figure 1b.
    """

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
        aux: Aux = {}
        if self.self_attn is not None:
            x, h = self.branch(self.input_layernorm, x)
            x = added(x, self.dropout(self.mix(h, cache, segment_ids, shared)))
        if self.mlp is not None:
            x, h = self.branch(self.post_attention_layernorm, x)
            y, aux = self.mlp(h)
            x = added(x, self.dropout(y))
        return x, aux
