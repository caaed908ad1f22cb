"""Both sublayers side by side, each behind its own norm."""

from typing import Any

import mlx.core as mx

from lmxexp.interfaces import Aux, Factory, Shared
from lmxexp.model.block.residual import ResidualBlock


class ParallelTwoNorms(ResidualBlock):
    """``x + mixer(norm1(x)) + ffn(norm2(x))``.

    Source: Black et al. 2022, "GPT-NeoX-20B", section 2.1.2 (whose code has two norms where the formula shows one);
        Almazrouei et al. 2023, "The Falcon Series of Open Language Models" (40B).
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
        y = x
        if self.self_attn is not None:
            y = y + self.dropout(self.mix(self.input_layernorm(x), cache, segment_ids, shared))
        if self.mlp is not None:
            z, aux = self.mlp(self.post_attention_layernorm(x))
            y = y + self.dropout(z)
        return y, aux
