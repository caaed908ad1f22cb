"""A decoder-only language model, composed of whatever kinds it is given."""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from lmxexp import device
from lmxexp.interfaces import Aux, ConfigError, Factory, Shared
from lmxexp.model.cache import NoState
from lmxexp.model.recompute import light, recomputed
from lmxexp.ops.cross_entropy import cross_entropy
from lmxexp.ops.documents import places
from lmxexp.ops.fused import is_mapped
from lmxexp.ops.head_loss import head_loss
from lmxexp.ops.trees import by_path

Remat = Literal["none", "light", "block"]
"""What is computed once more for the gradient, in the place of being kept: nothing, what is `cheap` within a layer, or
all within it."""


class Score(NamedTuple):
    """What a model makes of targets."""

    nll: mx.array
    """(B, L) fp32, ``-log p`` of each, in nats."""
    log_z: mx.array
    """(B, L) fp32, the log of the softmax's denominator."""
    logits: mx.array
    """(B, L, V), not to be differentiated."""


class LanguageModel(nn.Module):
    """Embedding, a stack of blocks laid out by a pattern, a final norm and a head.

    Args:
        vocab_size: V, from the data.
        d_model: D.
        n_layers: blocks in the stack.
        embedding: factory of tokens to vectors and vectors to logits, see `lmxexp.model.embedding`.
        norm: factory of the norm before the head.
        block: factory of a `Block`: where norms and sublayers stand.
        blocks: what a layer is made of, by name: ``mixer`` and ``ffn``, factories or None; where it differs from the
            rest, a ``block`` of its own; and ``slots``, arguments of the mixer's factory that this layer fills
            otherwise (``position: null`` in layers without positions), for mixers that have such a slot.
        pattern: the stack as names of ``blocks``: ``first`` once, ``repeat`` as often as ``n_layers`` needs (a last
            repetition may be cut short), ``last`` once.
        position_embedding: factory of a `PositionEmbedding`, or None.
        embedding_norm: factory of a norm on the embedded input, or None.
        logit_softcap: factory of a function on the logits; one that returns None leaves the slot empty.
        dropout: probability of dropping an element of the embedded input in training.
        ahead: factory of modules that predict tokens beyond the next, see `lmxexp.model.ahead`; their layers are made
            of what the last of the stack is made of. None: none.

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
        block: Factory,
        blocks: Mapping[str, Mapping[str, Any]],
        pattern: Mapping[str, Sequence[str]],
        position_embedding: Factory | None = None,
        embedding_norm: Factory | None = None,
        logit_softcap: Factory | None = None,
        dropout: float = 0.0,
        ahead: Factory | None = None,
    ):
        super().__init__()
        for key, value in {"d_model": d_model, "n_layers": n_layers}.items():
            if value < 1:
                raise ConfigError(f"model.{key}={value} must be at least 1")
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"model.dropout={dropout} must be in [0, 1)")
        self.vocab_size, self.d_model = vocab_size, d_model
        self.remat: Remat = "none"
        self.embedding = embedding(vocab_size=vocab_size, d_model=d_model)
        self.position_embedding = position_embedding(d_model=d_model) if position_embedding else None
        self.embedding_norm = embedding_norm(d_model) if embedding_norm else None
        self.embedding_dropout = nn.Dropout(dropout)
        names = lay_out(n_layers, pattern, blocks)
        self.layers = [_build_layer(d_model, i, block, **blocks[name]) for i, name in enumerate(names)]
        self.norm = norm(d_model)
        self.logit_softcap = logit_softcap() if logit_softcap else None
        another_layer = lambda k: _build_layer(d_model, n_layers + k, block, **blocks[names[-1]])
        self.ahead = ahead(d_model=d_model, norm=norm, layer=another_layer) if ahead else []

    def __call__(self, tokens: mx.array, cache: Sequence[Any] | None = None) -> mx.array:
        """``(B, L)`` token ids to ``(B, L, V)`` logits; the signature is mlx-lm's."""
        h, _ = self.hidden(tokens, cache=cache)
        return self.logits(h)

    def hidden(
        self, tokens: mx.array, *, cache: Sequence[Any] | None = None, segment_ids: mx.array | None = None
    ) -> tuple[mx.array, Aux]:
        """``(B, L)`` token ids to ``(B, L, D)`` after the last norm, and what the layers return beside (see `Aux`).

        Args:
            cache: one per layer, from `make_cache`; brought up to date in place.
            segment_ids: ``(B, L)``; positions of different segments do not see each other.
        """
        x = self.embedded(tokens, cache[0].offset if cache else 0, segment_ids)
        aux: Aux = {}
        shared: Shared = {}
        # What is mapped over members cannot be closed over: a population keeps its arrays.
        remat = "none" if not self.training or cache or is_mapped() else self.remat
        for i, (layer, layer_cache) in enumerate(zip(self.layers, cache or [None] * len(self.layers), strict=True)):
            if remat == "block":
                x, layer_aux = recomputed(layer, x, segment_ids=segment_ids, shared=shared)
            else:
                with light() if remat == "light" else nullcontext():
                    x, layer_aux = layer(x, cache=layer_cache, segment_ids=segment_ids, shared=shared)
            _collect(aux, layer_aux, i)
            if isinstance(layer_cache, NoState):
                layer_cache.offset += tokens.shape[1]
        return self.norm(x), aux

    def embedded(self, tokens: mx.array, offset: int = 0, segment_ids: mx.array | None = None) -> mx.array:
        """``(B, L)`` token ids, the first at position ``offset``, to ``(B, L, D)``: what the first layer gets."""
        x = self.embedding.embed(tokens)
        if self.position_embedding is not None:
            of_documents = () if segment_ids is None else (places(segment_ids),)
            x = self.position_embedding(x, offset, *of_documents)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        return self.embedding_dropout(x)

    def look_ahead(
        self, h: mx.array, tokens: mx.array, *, segment_ids: mx.array | None = None
    ) -> tuple[list[mx.array], Aux]:
        """What `logits` predicts tokens beyond the next from.

        Args:
            h: ``(B, L, D)``, what `hidden` made of ``tokens``, ``(B, L)``, with ``segment_ids``.

        Returns:
            For k = 1, 2, … as many as there are modules in ``ahead``, ``(B, L - k, D)``: at position i it stands for
            the tokens up to i + k, and predicts the one after; and what their layers return beside (see `Aux`).
        """
        aux: Aux = {}
        outputs = []
        for k, module in enumerate(self.ahead, start=1):
            ids = None if segment_ids is None else segment_ids[:, :-k]
            h, layer_aux = module(h[:, :-1], self.embedding.embed(tokens[:, k:]), ids)
            _collect(aux, layer_aux, len(self.layers) + k - 1)
            outputs.append(h)
        return outputs, aux

    def after_update(self, aux: Aux) -> None:
        """Hand what the layers returned in `hidden` and `look_ahead` back to those modules of theirs that keep state
        by it."""
        by_layer: dict[int, Aux] = {}
        for key, value in aux.items():
            name, _, layer = key.rpartition("/")
            if layer.isdigit():
                by_layer.setdefault(int(layer), {})[name] = value
        for i, layer_aux in by_layer.items():
            for module in [*self.layers, *self.ahead][i].modules():
                if hasattr(module, "after_update"):
                    module.after_update(layer_aux)

    def logits(self, h: mx.array) -> mx.array:
        """``(B, L, D) -> (B, L, V)``."""
        logits = self.embedding.logits(h)
        return self.logit_softcap(logits) if self.logit_softcap is not None else logits

    @property
    def head_with_loss(self) -> mx.array | None:
        """The matrix whose product gives the logits, where a GPU may compute them and their loss in one function."""
        return getattr(self.embedding, "head", None) if self.logit_softcap is None else None

    def score(self, h: mx.array, targets: mx.array) -> Score:
        """``(B, L, D)`` and ``(B, L)`` int32: how likely the model holds each target."""
        head = self.head_with_loss
        if head is not None and device.is_gpu():
            nll, log_z, logits = head_loss(h, head, targets)
        else:
            logits = self.logits(h)
            nll, log_z = cross_entropy(logits, targets)
        return Score(nll, log_z, logits)

    def make_cache(self) -> list[Any]:
        """An empty cache for every layer."""
        return [layer.make_cache() or NoState() for layer in self.layers]

    @property
    def max_len(self) -> int | None:
        """The longest sequence there are positions for; None: no bound."""
        return None if self.position_embedding is None else self.position_embedding.max_len

    def n_params(self) -> int:
        """Trainable parameters; a tied matrix counts once."""
        return sum(p.size for p in by_path(self.trainable_parameters()).values())

    def mixers(self, *, ahead: bool = False) -> list[Any]:
        """The mixers, in order of the layers, and with ``ahead`` those of the modules ahead. What a mixer is composed
        of is its own affair."""
        found: dict[str, Any] = {}
        for path, module in sorted(self.named_modules(), key=lambda named: _in_order(named[0])):
            if hasattr(module, "mixing_flops") and not any(path.startswith(f"{outer}.") for outer in found):
                found[path] = module
        return [mixer for path, mixer in found.items() if ahead or not path.startswith("ahead.")]

    def flops_per_token(self, seq_len: int) -> int:
        """FLOPs of training on one token of a sequence of ``seq_len``: forward and, at twice its cost, backward.

        Counts products with weight matrices (2 a weight) and mixing over positions by each mixer's true reach;
        norms, activations and the optimizer are left out, as usual.
        """
        weights = sum(m.weight.size for m in self.modules() if isinstance(m, nn.Linear)) + self.embedding.head_size()
        others = sum(m.weight_flops() for m in self.modules() if hasattr(m, "weight_flops"))
        weights += len(self.ahead) * self.vocab_size * self.d_model  # each uses the head once more
        mixing = sum(m.mixing_flops(seq_len) for m in self.mixers(ahead=True))
        return 3 * (2 * weights + others + mixing)

    def state_size(self, seq_len: int) -> int:
        """Cache elements of one sequence after ``seq_len`` positions."""
        return sum(m.state_size(seq_len) for m in self.mixers())


def _collect(aux: Aux, layer_aux: Aux, layer_idx: int) -> None:
    """Add what one layer returned to what all have, see `Aux`."""
    for name, value in layer_aux.items():
        if name.endswith("_loss"):
            aux[name] = aux[name] + value if name in aux else value
        else:
            aux[f"{name}/{layer_idx}"] = value


def _build_layer(
    d_model: int,
    layer_idx: int,
    default_block: Factory,
    mixer: Factory | None = None,
    ffn: Factory | None = None,
    block: Factory | None = None,
    slots: Mapping[str, Any] | None = None,
) -> Any:
    """One layer from its entry in ``blocks``."""
    if mixer is not None and slots:
        known = inspect.signature(mixer).parameters
        mixer = partial(mixer, **{name: value for name, value in slots.items() if name in known})
    return (block or default_block)(d_model=d_model, layer_idx=layer_idx, mixer=mixer, ffn=ffn)


def _in_order(path: str) -> list[tuple[int, int | str]]:
    """A key that sorts ``layers.2`` before ``layers.10``."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in path.split(".")]


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
