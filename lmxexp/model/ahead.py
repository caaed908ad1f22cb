"""Prediction of tokens beyond the next one."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import Aux, Factory


class Ahead(nn.Module):
    """From what stands for a position, and the token that comes next, to what stands for both.

        layer(eh_proj([norm(h_i); norm(embedding(token_{i + k}))]))

    The k-th of these takes h from the one before, the first from the model's last norm; through the model's own head
    it predicts token i + k + 1 and has seen the tokens up to i + k. In training alone: sampling does without.

    Args:
        d_model: D.
        norm: factory of a norm over D.
        layer: a `Block` of its own.

    Shapes:
        h and embedded ``(B, L, D)``, to the same.

    Cost:
        A layer's, ``2 D^2`` weights more, and the head once more.

    Source: DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", section 2.2, eqs. 21-23: modules in a row, each seeing
        the true tokens up to what it predicts. (In Gloeckle et al. 2024, "Better & Faster Large Language Models via
        Multi-token Prediction", heads side by side all start from the same h.) h is taken behind the norm before the
        head, as in the released code.
    """

    def __init__(self, d_model: int, norm: Factory, layer: Any):
        super().__init__()
        self.hnorm, self.enorm = norm(d_model), norm(d_model)
        self.eh_proj = nn.Linear(2 * d_model, d_model, bias=False)
        self.layer = layer
        self.norm = norm(d_model)

    def __call__(self, h: mx.array, embedded: mx.array, segment_ids: mx.array | None = None) -> tuple[mx.array, Aux]:
        x = self.eh_proj(mx.concatenate([self.hnorm(h), self.enorm(embedded)], axis=-1))
        x, aux = self.layer(x, segment_ids=segment_ids, shared={})
        return self.norm(x), aux


def modules_ahead(d_model: int, norm: Factory, layer: Callable[[int], Any], n_ahead: int) -> list[Ahead]:
    """``n_ahead`` modules.

    Args:
        layer: makes the block of the k-th, counted from 0.
        n_ahead: tokens predicted beyond the next; 0: none.
    """
    return [Ahead(d_model, norm, layer(k)) for k in range(n_ahead)]
