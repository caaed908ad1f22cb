"""A decoder-only language model, composed of whatever kinds it is given."""

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import Aux, ConfigError, Factory
from lmxexp.ops.trees import by_path


class LanguageModel(nn.Module):
    """Embedding, a stack of blocks laid out by a pattern, a final norm and a head.

    Args:
        vocab_size: V, from the data.
        d_model: D.
        n_layers: blocks in the stack.
        embedding: factory of tokens to vectors and vectors to logits, see `lmxexp.model.embedding`.
        norm: factory of the norm before the head.
        blocks: factories of a `Block`, by name.
        pattern: the stack as names of ``blocks``: ``first`` once, ``repeat`` as often as ``n_layers`` needs (a last
            repetition may be cut short), ``last`` once.
        position_embedding: factory of a `PositionEmbedding`, or None.
        logit_softcap: factory of a function on the logits; one that returns None leaves the slot empty.
        dropout: probability of dropping an element of the embedded input in training.

    Raises:
        ConfigError: a pattern that names no block or does not fit ``n_layers``.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        n_layers: int,
        embedding: Factory,
        norm: Factory,
        blocks: Mapping[str, Factory],
        pattern: Mapping[str, Sequence[str]],
        position_embedding: Factory | None = None,
        logit_softcap: Factory | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        for key, value in {"d_model": d_model, "n_layers": n_layers}.items():
            if value < 1:
                raise ConfigError(f"model.{key}={value} must be at least 1")
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"model.dropout={dropout} must be in [0, 1)")
        self.vocab_size = vocab_size
        self.embedding = embedding(vocab_size=vocab_size, d_model=d_model)
        self.position_embedding = position_embedding(d_model=d_model) if position_embedding else None
        self.embedding_dropout = nn.Dropout(dropout)
        self.layers = [
            blocks[name](d_model=d_model, layer_idx=i) for i, name in enumerate(lay_out(n_layers, pattern, blocks))
        ]
        self.norm = norm(d_model)
        self.logit_softcap = logit_softcap() if logit_softcap else None

    def __call__(self, tokens: mx.array, cache: Sequence[Any] | None = None) -> mx.array:
        """``(B, L)`` token ids to ``(B, L, V)`` logits; the signature is mlx-lm's."""
        h, _ = self.hidden(tokens, cache=cache)
        return self.logits(h)

    def hidden(
        self, tokens: mx.array, *, cache: Sequence[Any] | None = None, segment_ids: mx.array | None = None
    ) -> tuple[mx.array, Aux]:
        """``(B, L)`` token ids to ``(B, L, D)`` after the last norm, and the blocks' auxiliary scalars, summed.

        Args:
            cache: one per layer, from `make_cache`; brought up to date in place.
            segment_ids: ``(B, L)``; positions of different segments do not see each other.
        """
        offset = 0 if cache is None else next((c.offset for c in cache if c is not None), 0)
        x = self.embedding.embed(tokens)
        if self.position_embedding is not None:
            x = self.position_embedding(x, offset)
        x = self.embedding_dropout(x)
        aux: Aux = {}
        for layer, layer_cache in zip(self.layers, cache or [None] * len(self.layers), strict=True):
            x, layer_aux = layer(x, cache=layer_cache, segment_ids=segment_ids)
            for name, value in layer_aux.items():
                aux[name] = aux[name] + value if name in aux else value
        return self.norm(x), aux

    def logits(self, h: mx.array) -> mx.array:
        """``(B, L, D) -> (B, L, V)``."""
        logits = self.embedding.logits(h)
        return self.logit_softcap(logits) if self.logit_softcap is not None else logits

    def make_cache(self) -> list[Any]:
        """An empty cache for every layer; None for a layer that keeps nothing."""
        return [layer.make_cache() for layer in self.layers]

    @property
    def max_len(self) -> int | None:
        """The longest sequence there are positions for; None: no bound."""
        return None if self.position_embedding is None else self.position_embedding.max_len

    def n_params(self) -> int:
        """Trainable parameters; a tied matrix counts once."""
        return sum(p.size for p in by_path(self.trainable_parameters()).values())

    def mixers(self) -> list[Any]:
        """The mixers, in order of the layers."""
        return [m for _, m in self.named_modules() if hasattr(m, "mixing_flops")]

    def flops_per_token(self, seq_len: int) -> int:
        """FLOPs of training on one token of a sequence of ``seq_len``: forward and, at twice its cost, backward.

        Counts products with weight matrices (2 a weight) and mixing over positions by each mixer's true reach;
        norms, activations and the optimizer are left out, as usual.
        """
        weights = sum(m.weight.size for m in self.modules() if isinstance(m, nn.Linear)) + self.embedding.head_size()
        mixing = sum(m.mixing_flops(seq_len) for m in self.mixers())
        return 3 * (2 * weights + mixing)

    def state_size(self, seq_len: int) -> int:
        """Cache elements of one sequence after ``seq_len`` positions."""
        return sum(m.state_size(seq_len) for m in self.mixers())


def lay_out(n_layers: int, pattern: Mapping[str, Sequence[str]], blocks: Mapping[str, Any]) -> list[str]:
    """The block name of every layer."""
    first, repeat, last = (list(pattern.get(part) or []) for part in ("first", "repeat", "last"))
    for name in [*first, *repeat, *last]:
        if name not in blocks:
            raise ConfigError(f"model.net.pattern names {name!r}, but model.net.blocks has {', '.join(blocks)}")
    between = n_layers - len(first) - len(last)
    if between < 0 or (between and not repeat):
        raise ConfigError(
            f"model.n_layers={n_layers} does not fit model.net.pattern: {len(first)} first, {len(last)} last, "
            f"{len(repeat)} to repeat"
        )
    repetitions = -(-between // len(repeat)) if repeat else 0
    return first + (repeat * repetitions)[:between] + last
