"""With ``data.document_mask=true`` no document sees another: from the text to the updated weights, for every
class of mixers (`test_models` has the forward pass of every kind)."""

from functools import partial

import mlx.core as mx
import mlx.optimizers
import numpy as np
import pytest

from lmxexp.data.corpus import Corpus
from lmxexp.data.token_stream import TokenStream
from lmxexp.loss.cross_entropy import CrossEntropy
from lmxexp.ops.trees import by_path
from lmxexp.optim.build import build_optimizer
from lmxexp.population.step import PopulationStep
from lmxexp.ramp.seq_len import SeqLen
from lmxexp.tokenizer.char import CharTokenizer
from lmxexp.train.evaluator import Evaluator
from lmxexp.train.step import TrainStep
from tests.contracts.small_models import LENGTH, kinds, one_of_each_class, relative_error, small_model, tokens

LETTERS = "abcdefghijklmnop"
CHANGED = 7
"""A document in the middle, which gets another text of the same length."""
RAMP = SeqLen(steps=4, batch_size=4, seq_len=LENGTH, start=LENGTH // 2, until=0.5)
MIXERS = [f"attention={kind}" for kind in one_of_each_class("attention") if kind != "none"]
POSITIONS = [f"position={kind}" for kind in one_of_each_class("position") if kind not in ("rope", "none")]

every_mixer = pytest.mark.parametrize("overrides", [(kind,) for kind in MIXERS + POSITIONS], ids=" ".join)


def texts(changed):
    rng = np.random.default_rng(3)
    documents = ["".join(rng.choice(list(LETTERS), size=n)) for n in rng.integers(3, 14, size=16)]
    if changed:
        documents[CHANGED] = documents[CHANGED].translate(str.maketrans(LETTERS, LETTERS[3:] + LETTERS[:3]))
    return [LETTERS, *documents]  # all letters are in both


class Source:
    """Batches of the text, in which the targets within the changed document do not count: whatever else changes is of
    other documents. The target at the border before it keeps the weight that the source gives it."""

    eval_bytes = None

    def __init__(self, tmp_path, changed, document_mask=True, packing="stream"):
        both = [self._stream(tmp_path, c, packing) for c in (False, True)]
        self._document_mask = document_mask
        self._mine, self._other = reversed(both) if changed else both

    @staticmethod
    def _stream(tmp_path, changed, packing):
        documents = texts(changed)
        corpus = Corpus(lambda: documents, lambda: documents, str(changed), {})
        return TokenStream(
            corpus,
            tokenizer=CharTokenizer,
            seq_len=LENGTH,
            batch_size=4,
            seed=0,
            max_eval_tokens=None,
            cache_dir=str(tmp_path),
            document_mask=True,
            packing=packing,
        )

    def _without(self, batch, other):
        weights = batch.weights.copy()
        for row, ids in enumerate(batch.segment_ids):
            weights[row, np.isin(ids, ids[batch.inputs[row] != other.inputs[row]])] = 0
        assert (batch.inputs != other.inputs).any() or (weights == batch.weights).all()
        batch = batch._replace(weights=weights)
        return batch if self._document_mask else batch._replace(segment_ids=None)

    def batch(self, index, **_):
        return self._without(self._mine.batch(index), self._other.batch(index))

    def eval_batches(self):
        return map(self._without, self._mine.eval_batches(), self._other.eval_batches())


def parts(*overrides):
    model = small_model(*overrides)
    model.train()
    optimizer = build_optimizer(
        partial(mlx.optimizers.AdamW, learning_rate=1e-2), lambda step: mx.array(1.0, mx.float32)
    )
    optimizer.init(model.trainable_parameters())
    return model, optimizer


def trained(source, overrides, **settings):
    """Losses, gradient norms, weights and evaluation after a step on rows that were cut and one on whole ones."""
    model, optimizer = parts(*overrides)
    step = TrainStep(model, optimizer, CrossEntropy(), stages=RAMP.stages, **settings)
    found = []
    for i in (0, 3):
        scalars = step(RAMP.batch(source, i))
        mx.eval(scalars, step.state)
        found += [scalars["train/loss"].item(), scalars["train/grad_norm"].item()]
    evaluate = Evaluator(model, CrossEntropy(), source, n_micro=settings["n_micro"], compile=settings["compile"])
    return found, by_path(model.parameters()), evaluate()


def assert_apart(tmp_path, overrides, packing="stream", **settings):
    want, weights, evaluated = trained(Source(tmp_path, False, packing=packing), overrides, **settings)
    got, changed, evaluated_changed = trained(Source(tmp_path, True, packing=packing), overrides, **settings)
    assert got == want
    assert evaluated_changed == evaluated
    assert all(mx.array_equal(changed[path], w).item() for path, w in weights.items())
    return want, evaluated


@every_mixer
def test_another_documents_text_changes_nothing(tmp_path, overrides):
    assert_apart(tmp_path, overrides, n_micro=2, compile=False)


def test_without_the_mask_it_does(tmp_path):
    of = [trained(Source(tmp_path, c, document_mask=False), (), n_micro=1, compile=False) for c in (False, True)]
    assert of[0][0] != of[1][0]
    assert of[0][2] != of[1][2]


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
@pytest.mark.parametrize("n_micro", [1, 2])
def test_compiled_as_eager(tmp_path, packing, n_micro):
    eager, evaluated = assert_apart(tmp_path, (), packing, n_micro=n_micro, compile=False)
    compiled, evaluated_compiled = assert_apart(tmp_path, (), packing, n_micro=n_micro, compile=True)
    assert compiled == pytest.approx(eager, rel=1e-5)
    assert evaluated_compiled == pytest.approx(evaluated, rel=1e-5)


def in_a_population(sources, overrides, n_micro):
    """Losses of two members, of different texts, and their weights."""
    models, optimizers = zip(*(parts(*overrides) for _ in sources), strict=True)
    keys = [mx.random.key(7) for _ in sources]
    step = PopulationStep(models, optimizers, [CrossEntropy()] * 2, keys, stages=RAMP.stages, n_micro=n_micro)
    found = []
    for i in (0, 3):
        scalars = step([RAMP.batch(source, i) for source in sources])
        mx.eval(scalars, step.state)
        found.append(scalars["train/loss"].tolist())
    return found, [step.member(i)[0] for i in range(2)]


def assert_apart_in_a_population(tmp_path, overrides, n_micro):
    sources = [Source(tmp_path, changed) for changed in (False, True)]
    losses, (weights, changed) = in_a_population(sources, overrides, n_micro)
    assert all(a == b for a, b in losses)
    assert all(mx.array_equal(changed[path], w).item() for path, w in weights.items())
    alone = trained(sources[0], overrides, n_micro=n_micro, compile=True)[0][::2]
    assert [a for a, _ in losses] == pytest.approx(alone, rel=1e-5)


def test_in_a_population(tmp_path):
    assert_apart_in_a_population(tmp_path, ("position=learned",), n_micro=2)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", [kind for kind in kinds("attention") if f"attention={kind}" not in MIXERS])
def test_every_other_kind(tmp_path, kind):
    assert_apart(tmp_path, (f"attention={kind}",), n_micro=2, compile=False)


@pytest.mark.exhaustive
@every_mixer
def test_compiled_and_in_a_population(tmp_path, overrides):
    compiled, _ = assert_apart(tmp_path, overrides, n_micro=2, compile=True)
    eager, *_ = trained(Source(tmp_path, False), overrides, n_micro=2, compile=False)
    assert compiled == pytest.approx(eager, rel=1e-4)
    assert_apart_in_a_population(tmp_path, overrides, n_micro=1)


@every_mixer
def test_a_document_is_what_it_would_be_alone(overrides):
    """Wherever it stands in its row: positions, chunks and states begin with it."""
    model = small_model(*overrides)
    x = tokens()
    ids = mx.array([[3] * 7 + [1] * 9 + [2] * (LENGTH - 16)] * 2)
    h = model.hidden(x, segment_ids=ids)[0]
    for start, end in ((0, 7), (7, 16), (16, LENGTH)):
        assert relative_error(h[:, start:end], model.hidden(x[:, start:end])[0]) < 1e-4
