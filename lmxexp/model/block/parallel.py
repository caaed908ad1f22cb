"""Both sublayers side by side."""

from typing import Any

import mlx.core as mx

from lmxexp.interfaces import Aux, Factory, Shared
from lmxexp.model.block.residual import ResidualBlock
from lmxexp.ops.rms_norm import added


class Parallel(ResidualBlock):
    """``x + mixer(norm(x)) + ffn(norm(x))`` with one norm.

    Source: Wang & Komatsuzaki 2021, "GPT-J-6B"; Chowdhery et al. 2022, "PaLM", section 2.
    """

    def make_norms(self, d_model: int, norm: Factory) -> None:
        self.input_layernorm = norm(d_model)

    def __call__(
        self,
        x: mx.array,
        *,
        cache: Any = None,
        segment_ids: mx.array | None = None,
        shared: Shared | None = None,
    ) -> tuple[mx.array, Aux]:
        aux: Aux = {}
        x, h = self.branch(self.input_layernorm, x)
        if self.self_attn is not None:
            x = added(x, self.dropout(self.mix(h, cache, segment_ids, shared)))
        if self.mlp is not None:
            y, aux = self.mlp(h)
            x = added(x, self.dropout(y))
        return x, aux
