"""Every extension point of lmxexp, on one page.

A *kind* is one Python file ``lmxexp/<group>/<kind>.py`` and one YAML ``conf/<group>/<kind>.yaml`` that names it by
``_target_``. Nothing registers: a class of yours, in a package of yours, named by a YAML of yours, is a kind too.
The protocols here are what a kind has to be; the contract tests under ``tests/contracts`` check that it is.

Shape letters, everywhere in the code:

======  =============================  ======  ==================
``B``   batch                          ``D``   ``d_model``
``L``   new positions of this call     ``H``   heads
``S``   all positions seen so far      ``K``   key-value heads
``V``   vocabulary                     ``C``   ``head_dim``
``F``   ``d_ff``                       ``E``   experts
``N``   recurrent state size
======  =============================  ======  ==================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import mlx.core as mx
import mlx.optimizers
import numpy as np

if TYPE_CHECKING:
    from lmxexp.model.language_model import LanguageModel
    from lmxexp.train.trainer import Trainer


class ConfigError(ValueError):
    """A setting of the user's that cannot work. The message names the key, its value and the mend."""


# --- model ----------------------------------------------------------------------------------------------------------

Aux = dict[str, mx.array]
"""What a module returns beside its output, by name. A scalar whose name ends in ``_loss`` is added to the training loss
(already weighted) and summed over layers. Everything else, scalars and vectors, is kept apart by layer, as
``name/layer``: logged, and after the update handed back to the layer's modules that have ``after_update(aux)`` (state
that no gradient moves, such as the bias that balances experts)."""

Shared = dict[str, mx.array]
"""What a layer hands on to later ones within one forward pass, such as the first layer's values."""


class Cache(Protocol):
    """What one mixer keeps between calls in decoding. Made by the mixer, owned by the caller.

    Never an ``nn.Module`` and never stored on one: MLX would take its arrays for parameters.
    """

    offset: int
    """Positions seen so far."""

    @property
    def state(self) -> list[mx.array]:
        """The arrays held, without unused capacity: ``sum(a.size for a in state) == mixer.state_size(offset)``
        for a batch of one."""
        ...


class Mixer(Protocol):
    """Mixes information over positions. Made by ``factory(d_model=, layer_idx=)``.

    The mixer makes its own mask and its own cache: a window or a chunk is part of what a kind is. One with a true
    attribute ``takes_shared`` is called with ``shared=`` as well: a `Shared` that all layers write and read.
    """

    def __call__(self, x: mx.array, *, cache: Any = None, segment_ids: mx.array | None = None) -> mx.array:
        """``(B, L, D) -> (B, L, D)``, causal. ``segment_ids`` ``(B, L)`` int: positions see their own segment only;
        a mixer that cannot do it raises ``NotImplementedError``."""
        ...

    def make_cache(self) -> Cache: ...

    def state_size(self, seq_len: int) -> int:
        """Elements of cache for one sequence after ``seq_len`` positions."""
        ...

    def mixing_flops(self, seq_len: int) -> int:
        """FLOPs of one forward pass over ``seq_len`` positions, per position and on average, beyond the products with
        weight matrices, which are counted from the parameters. A multiply-add is two FLOPs."""
        ...


class Position(Protocol):
    """How a mixer learns about order, inside attention. Made by ``factory(head_dim=, n_heads=)``.

    One with a true attribute ``takes_places`` counts from the beginning of each document: with documents kept apart,
    ``rotate`` is called with ``places=``, ``(B, L)``, where each position stands in its own.
    """

    def rotate(self, q: mx.array, k: mx.array, offset: int) -> tuple[mx.array, mx.array]:
        """``(B, H, L, C), (B, K, L, C)`` to the same; ``offset`` is the position of the first of the L."""
        ...

    def bias(self, n_q: int, n_k: int) -> mx.array | None:
        """What is added to the scores, ``(H, n_q, n_k)`` fp32, or None. The queries are the last ``n_q`` of the
        ``n_k`` positions."""
        ...


class PositionEmbedding(Protocol):
    """Order as a vector that is added to the token's. Made by ``factory(d_model)``; an ``nn.Module``."""

    max_len: int | None
    """The most positions there are vectors for; None: no bound."""

    def __call__(self, x: mx.array, offset: int, places: mx.array | None = None) -> mx.array:
        """``(B, L, D) -> (B, L, D)``; ``offset`` is the position of the first of the L. With documents kept apart,
        ``places`` ``(B, L)`` is where each position stands in its own document, and counts instead."""
        ...


class FeedForward(Protocol):
    """Works on each position alone. Made by ``factory(d_model=)``.

    One whose weights are not all ``nn.Linear`` has ``weight_flops() -> int``: FLOPs of a forward pass per position in
    products with its other weights, active experts alone.
    """

    def __call__(self, x: mx.array) -> tuple[mx.array, Aux]:
        """``(B, L, D) -> (B, L, D)`` and what goes beside it; a dense one returns ``(y, {})``."""
        ...


class Block(Protocol):
    """One layer: where norms, mixer and feed-forward stand. Made by
    ``factory(d_model=, layer_idx=, mixer=, ffn=)`` with factories of the two; either may be None, or build None."""

    def __call__(
        self,
        x: mx.array,
        *,
        cache: Any = None,
        segment_ids: mx.array | None = None,
        shared: Shared | None = None,
    ) -> tuple[mx.array, Aux]: ...

    def make_cache(self) -> Cache | None: ...


# A norm is made by ``factory(dims)``; ``mlx.nn.RMSNorm`` is one as it stands.
Factory = Callable[..., Any]
"""Builds a module: what Hydra makes of a node with ``_partial_: true``."""

Init = Callable[["LanguageModel", mx.array], None]
"""``init(model, key)``: gives every parameter of a `LanguageModel` its starting value, from the random key alone."""


# --- training -------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """One batch. NumPy on the way out of a source, MLX inside the step; a source's shapes never change during a run.

    ``weights`` None means that every target counts once.
    """

    inputs: Any
    """(B, L) int32 token ids."""
    targets: Any
    """(B, L) int32, what each position should predict."""
    weights: Any = None
    """(B, L) float32, how much each target counts: 0 for padding."""
    segment_ids: Any = None
    """(B, L) int32, the document each position belongs to."""


class Loss(Protocol):
    """``(model, batch) -> (scalar, aux)``. The scalar, fp32, is the mean over the batch's weighted targets, plus the
    model's auxiliary losses. ``aux["nll"]`` is the plain sum of ``-log p(target) * weight`` in nats and
    ``aux["n_targets"]`` the sum of the weights, both fp32: accumulation and evaluation weigh with them.
    ``aux["n_correct"]`` is the weighted number of targets that were the most likely token (in evaluation only)."""

    def __call__(self, model: LanguageModel, batch: Batch) -> tuple[mx.array, Aux]: ...


Schedule = Callable[[mx.array], mx.array]
"""Step (a scalar array, 0 at the first update) to the factor, usually in [0, 1], that multiplies every learning rate.
Traced: no Python ``if`` on the step."""

OptimizerFactory = Callable[..., mlx.optimizers.Optimizer]
"""``conf/optim/*.yaml``: any constructor that takes ``learning_rate`` as a callable of the step, as all of
``mlx.optimizers`` do. The number in the YAML is the peak; `lmxexp.optim.build.build_optimizer` puts
``lambda step: number * schedule(step)`` in its place, for every ``learning_rate`` of the node."""


@dataclass(frozen=True)
class Stage:
    """The steps of a run whose batches have one shape."""

    start: int
    """The first of them; 0 is the first update."""
    batch_size: int
    """B, sequences in one of the steps."""
    seq_len: int
    """L, tokens in one sequence."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of the batches."""
        return self.batch_size, self.seq_len

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.batch_size * self.seq_len


Grows = Literal["batch_size", "seq_len"]


class Ramp(Protocol):
    """Which part of the data each step trains on, in which shape. The whole batches of the source are what evaluation
    uses and the last stage trains on."""

    stages: Sequence[Stage]
    """In order; the first starts at step 0. No two of one shape: each is compiled once."""
    grows: Grows | None
    """What differs from stage to stage, and is logged as ``train/<grows>``; None: nothing, there is one stage."""
    cuts_rows: bool
    """Whether sequences are made of parts of the source's, which has to be ``divisible``."""

    def batch(self, source: Source, step: int, *, rank: int = 0, world: int = 1) -> Batch:
        """What step number ``step``, from 0, trains on: a pure function of both, so a run resumes with no state. Of its
        rows those of ``rank``, as `Source.batch` shares them."""
        ...


# --- data -----------------------------------------------------------------------------------------------------------


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back. Made by ``factory(texts=, fingerprint=, cache_dir=)``: a callable that returns an
    iterator over the training text (a kind that learns nothing never calls it), that text's name, and where what was
    learned may be kept.

    A kind may also have ``n_bytes(ids)``, the UTF-8 bytes of tokens, ``encode_batch(texts)``, which two threads call at
    once, and a true attribute ``encodes_pieces`` if a text cut where `lmxexp.data.corpus.pieces` cuts has the tokens of
    the whole: long documents then need not be in memory.
    """

    vocab_size: int
    eos_id: int | None

    def encode(self, text: str) -> np.ndarray:
        """Token ids, 1-d, of the smallest unsigned type that holds ``vocab_size - 1``."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text; bytes that are no UTF-8 become U+FFFD."""
        ...

    def save(self, path: Path) -> None:
        """One JSON file that `lmxexp.tokenizer.load.load` reads back."""
        ...


class Source(Protocol):
    """Batches of training and evaluation data. Made by ``factory(tokenizer=factory)``; sequence length, batch size and
    the data's seed are in its configuration.

    One whose rows are running text, of which every piece is text again, has a true attribute ``divisible``; one whose
    batches have ``segment_ids``, a true attribute ``document_mask``. One that is made of others has them by name as
    ``sources``, which are evaluated each by itself as well, and may say by ``seen(tokens)`` what of them the first
    ``tokens`` of training were: metrics, logged as ``data/…``."""

    vocab_size: int
    tokenizer: Tokenizer | None
    fingerprint: str
    """Names the tokens: equal exactly when the training and evaluation streams are."""
    eval_bytes: int | None
    """UTF-8 bytes of all the evaluation targets together; None where bits per byte mean nothing."""
    record: Mapping[str, Any]
    """What goes into ``run.json`` under ``data``: counts, fingerprint, where the data came from."""

    def batch(self, index: int, *, rank: int = 0, world: int = 1) -> Batch:
        """Rows ``[rank * B / world, (rank + 1) * B / world)`` of the global training batch number ``index``: a pure
        function of the source's seed and ``index``, so a run resumes with no data state."""
        ...

    def eval_batches(self) -> Iterator[Batch]:
        """The whole validation split, every target once, in batches of one shape; the last is filled up with targets
        of weight 0."""
        ...


# --- around a run ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunInfo:
    """What a logger learns when a run starts."""

    run_dir: Path
    run_id: str
    """Unique, of letters and digits; the same after a resume."""
    name: str
    config: dict[str, Any]
    """The resolved configuration as plain containers."""
    choices: dict[str, str]
    """The chosen kind of every group: ``{"attention": "gqa", "optim": "adamw", …}``."""
    record: dict[str, Any]
    """``run.json`` so far."""
    total_steps: int
    resume_step: int = 0
    """Steps done already; 0 for a new run. Lines logged for later steps are of a future that did not happen."""
    tags: list[str] = field(default_factory=list)
    group: str | None = None
    """The sweep's name."""
    job_type: str = "run"
    """``run``, or how the sweep that the run is a point of chooses its points: grid, random, halving, …"""
    side_by_side: bool = False
    """Whether other runs are under way in this process, each with loggers of its own."""


class Logger(Protocol):
    """Where metrics go. Several at once, in the order of the configuration; one that fails never stops the run."""

    def start(self, info: RunInfo) -> None: ...

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Metrics after ``step`` steps: plain floats, among them always ``tokens``. At most one call a step."""
        ...

    def text(self, name: str, value: str, *, step: int) -> None:
        """A text, such as a sample of the model's."""
        ...

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """``status``: ok, paused, stopped (by a signal), diverged or failed. ``summary``: as in ``summary.json``."""
        ...


class Callback(Protocol):
    """Work between steps. Called after every ``every`` steps (0: never in between) and, with ``at_end``, once more
    after the last step if that was not one of them. The metrics that it returns are logged.

    One that reads neither weights, optimizer nor random state, but clocks or scalars, may say so with
    ``reads_state = False``: then the device need not wait for it with the next step.
    """

    every: int
    at_end: bool
    after_log: bool
    """Called once the step's metrics are logged: what records the state of the run, such as a checkpoint, must not
    stand without them."""

    def __call__(self, trainer: Trainer) -> Mapping[str, float]: ...


@runtime_checkable
class Stateful(Protocol):
    """A callback that has arrays of its own from step to step: they are part of the checkpoints."""

    state: dict[str, mx.array]
    """Empty before its first step."""

    def restore(self, arrays: Mapping[str, mx.array]) -> None:
        """Go on from the ``state`` that a checkpoint holds."""
        ...
