"""Norms after the sublayers, inside the residual branch."""

from typing import Any

import mlx.core as mx

from lmxexp.interfaces import Aux, Factory, Shared
from lmxexp.model.block.residual import ResidualBlock


class PostNorm(ResidualBlock):
    """``x + norm(f(x))`` for the mixer, then for the feed-forward.

    The residual stream itself is never normalised, unlike in the first Transformer's ``norm(x + f(x))``, which does not
    train without warmup at depth and is no longer in use.

    Source: OLMo Team 2025, "2 OLMo 2 Furious", section 3.3.
    """

    def make_norms(self, d_model: int, norm: Factory) -> None:
        if self.self_attn is not None:
            self.post_attention_layernorm = norm(d_model)
        if self.mlp is not None:
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
            x = x + self.dropout(self.post_attention_layernorm(self.mix(x, cache, segment_ids, shared)))
        if self.mlp is not None:
            y, aux = self.mlp(x)
            x = x + self.dropout(self.post_feedforward_layernorm(y))
        return x, aux
