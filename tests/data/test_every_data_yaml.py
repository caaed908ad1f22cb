"""What every kind of data promises. Generated from conf/data."""

import inspect
import json

import numpy as np
import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from lmxexp.interfaces import ConfigError
from tests.data.kinds import CONF, KINDS

every_kind = pytest.mark.parametrize("kind", KINDS)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True) if x is not None or y is not None)


def evaluated(source):
    """Inputs and targets that count, in order."""
    inputs, targets = [], []
    for batch in source.eval_batches():
        counted = batch.weights == 1
        inputs.append(batch.inputs[counted])
        targets.append(batch.targets[counted])
    return np.concatenate(inputs), np.concatenate(targets)


@every_kind
def test_the_yaml_has_a_description_and_every_setting_of_the_constructor(kind):
    file = CONF / f"{kind}.yaml"
    assert file.read_text().startswith("# ")
    cfg = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    assert cfg.pop("_partial_") is True
    parameters = inspect.signature(get_class(cfg.pop("_target_"))).parameters
    assert set(cfg) | {"tokenizer"} == set(parameters)
    assert all(p.annotation is not inspect.Parameter.empty for p in parameters.values())


@every_kind
def test_batches_have_the_promised_shapes_and_types(make, kind):
    source = make(kind)
    batch = source.batch(0)
    for a in (batch.inputs, batch.targets):
        assert a.shape == (4, 16)
        assert a.dtype == np.int32
        assert a.min() >= 0
        assert a.max() < source.vocab_size
    assert batch.segment_ids is None
    if batch.weights is not None:
        assert batch.weights.shape == (4, 16)
        assert batch.weights.dtype == np.float32
    n = 0
    for batch in source.eval_batches():
        n += 1
        assert batch.inputs.shape == batch.targets.shape == batch.weights.shape == (4, 16)
        assert batch.inputs.dtype == batch.targets.dtype == np.int32
        assert batch.weights.dtype == np.float32
        assert set(np.unique(batch.weights)) <= {0.0, 1.0}
    assert n > 1


@every_kind
def test_a_batch_is_a_function_of_seed_and_index(make, kind):
    source, again, other = make(kind), make(kind), make(kind, seed=2)
    far = 123_456_789
    for index in (0, 1, far):
        source.batch(7)
        assert same(source.batch(index), again.batch(index))
        assert not same(source.batch(index), source.batch(index + 1))
        assert not same(source.batch(index), other.batch(index))
    for a, b in zip(source.eval_batches(), other.eval_batches(), strict=True):
        assert same(a, b)
    assert source.fingerprint == other.fingerprint


@every_kind
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_global_batch(make, kind, world):
    source = make(kind)
    whole = source.batch(3)
    parts = [source.batch(3, rank=r, world=world) for r in range(world)]
    joined = [None if field[0] is None else np.concatenate(field) for field in zip(*parts, strict=True)]
    assert same(whole, joined)
    with pytest.raises(ConfigError, match=r"train\.batch_size=4 must be a multiple of the 3"):
        source.batch(0, rank=0, world=3)


@every_kind
def test_the_record_is_json_and_tells_what_was_evaluated(make, kind):
    source = make(kind)
    record = json.loads(json.dumps(source.record))
    assert record["fingerprint"] == source.fingerprint
    assert record["vocab_size"] == source.vocab_size
    assert record["eval_bytes"] == source.eval_bytes
    assert record["eval_targets"] == len(evaluated(source)[1])


@every_kind
def test_evaluation_is_cut_to_its_first_targets(make, kind):
    whole = make(kind)
    short = make(kind, max_eval_tokens=17)
    for all_of_it, some in zip(evaluated(whole), evaluated(short), strict=True):
        assert np.array_equal(all_of_it[:17], some)
    assert whole.fingerprint != short.fingerprint
    assert make(kind, max_eval_tokens=10**9).fingerprint == whole.fingerprint
    if short.eval_bytes is not None:
        assert short.eval_bytes == 17  # of the byte tokenizer


@every_kind
def test_evaluation_does_not_depend_on_the_batch(make, kind):
    for a, b in zip(evaluated(make(kind)), evaluated(make(kind, batch_size=7)), strict=True):
        assert np.array_equal(a, b)


@every_kind
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seq_len": 0}, r"train\.seq_len=0 must be at least 1"),
        ({"batch_size": 0}, r"train\.batch_size=0 must be at least 1"),
        ({"seed": -1}, r"data\.seed=-1 must be at least 0"),
        ({"max_eval_tokens": 0}, r"data\.max_eval_tokens=0 must be at least 1"),
    ],
)
def test_sizes_that_no_batch_can_have(make, kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        make(kind, **settings)
