"""Ramps against loops that count: which rows each step trains on, and how many tokens that makes."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

import lmxexp
from lmxexp.data.sampling import rank_rows
from lmxexp.interfaces import Batch, ConfigError
from lmxexp.ramp.batch_size import BatchSize
from lmxexp.ramp.build import ramp_of
from lmxexp.ramp.none import NoRamp
from lmxexp.ramp.seq_len import SeqLen
from lmxexp.ramp.stages import flops_in, say, stage_of, steps_of, tokens_in
from lmxexp.train.parts import n_parts

CONF = Path(__file__).parents[2] / "conf"


class Numbered:
    """Rows that are numbered through all batches, the tokens of a row through all rows."""

    def __init__(self, batch_size, seq_len):
        self.shape = batch_size, seq_len

    def batch(self, index, *, rank=0, world=1):
        rows, length = self.shape
        ids = (index * rows * length + np.arange(rows * length)).reshape(self.shape)
        own = ids[rank_rows(rows, rank, world)]
        return Batch(own, own + 1, weights=own % 7, segment_ids=own // 5)


def settings(seed, key):
    """Random ones that fit: sizes, and the fraction such that every stage has its steps."""
    rng = np.random.default_rng(seed)
    n_stages, odd = int(rng.integers(1, 5)), int(rng.choice([1, 2, 3, 5]))
    full = {"batch_size": int(rng.integers(1, 5)), "seq_len": int(rng.integers(1, 9))} | {key: odd * 2**n_stages}
    least = n_stages * (2**n_stages if key == "batch_size" else 1)
    steps = least + int(rng.integers(3, 90))
    until = float(rng.uniform(least / steps, (steps - 2.5) / steps))
    return {**full, "steps": steps, "until": until, "start": odd}


def of(kind, seed):
    given = settings(seed, kind.grows)
    return kind(**given), given


@pytest.mark.parametrize("seed", range(60))
def test_a_growing_batch_takes_every_row_once_and_in_order(seed):
    ramp, given = of(BatchSize, seed)
    source = Numbered(given["batch_size"], given["seq_len"])
    batches = [ramp.batch(source, step) for step in range(given["steps"])]
    for name in Batch._fields:
        rows = np.concatenate([getattr(batch, name) for batch in batches])
        expected = np.concatenate([getattr(source.batch(i), name) for i in range(given["steps"])])
        np.testing.assert_array_equal(rows, expected[: len(rows)])
    sizes = [len(batch.inputs) for batch in batches]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (given["start"], given["batch_size"])
    # A stage ends where a batch of the source does: the rows so far are whole batches.
    for i in range(1, len(sizes)):
        if sizes[i] != sizes[i - 1]:
            assert sizes[i] == 2 * sizes[i - 1]
            assert sum(sizes[:i]) % given["batch_size"] == 0


@pytest.mark.parametrize("seed", range(60))
def test_growing_sequences_hold_all_of_each_batch(seed):
    ramp, given = of(SeqLen, seed)
    source = Numbered(given["batch_size"], given["seq_len"])
    lengths = []
    for step in range(given["steps"]):
        batch, whole = ramp.batch(source, step), source.batch(step)
        rows, length = batch.inputs.shape
        lengths.append(length)
        assert rows * length == given["batch_size"] * given["seq_len"]
        for got, want in zip(batch, whole, strict=True):
            np.testing.assert_array_equal(got.ravel(), want.ravel())
        assert (np.diff(batch.inputs, axis=1) == 1).all(), "a row is no piece of one of the source's"
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (given["start"], given["seq_len"])
    assert {b / a for a, b in pairwise(lengths)} == {1, 2}


@pytest.mark.parametrize("kind", [BatchSize, SeqLen])
@pytest.mark.parametrize("seed", range(30))
def test_closed_forms_are_what_a_loop_counts(kind, seed):
    ramp, given = of(kind, seed)
    source = Numbered(given["batch_size"], given["seq_len"])
    per_token = lambda length: 3 + length**2
    tokens = flops = 0
    counts = {}
    for step in range(given["steps"] + 5):  # a run may be made longer
        so_far = steps_of(ramp.stages, step)
        assert (tokens_in(so_far), flops_in(so_far, per_token), so_far) == (tokens, flops, counts)
        shape = ramp.batch(source, step).inputs.shape
        assert stage_of(ramp.stages, step).shape == shape
        tokens += shape[0] * shape[1]
        flops += shape[0] * shape[1] * per_token(shape[1])
        stage = stage_of(ramp.stages, step)
        counts = {**counts, stage: counts.get(stage, 0) + 1}


@pytest.mark.parametrize("kind", [BatchSize, SeqLen])
@pytest.mark.parametrize("seed", range(30))
def test_stages_share_the_steps_until_the_end_equally(kind, seed):
    """Within what rounding to whole batches of the source takes."""
    ramp, given = of(kind, seed)
    n = len(ramp.stages) - 1
    for i, stage in enumerate(ramp.stages):
        parts = given["batch_size"] // ramp.stages[max(i - 1, 0)].batch_size if kind is BatchSize else 1
        ideal = round(given["until"] * given["steps"]) * i / n
        assert abs(stage.start - ideal) <= parts / 2
    assert ramp.stages[-1].start < given["steps"]


def test_a_batch_that_doubles_after_equal_steps_is_linear_in_the_tokens():
    ramp = BatchSize(steps=400, batch_size=32, seq_len=8, start=2, until=0.5)
    seen = [tokens_in(steps_of(ramp.stages, stage.start)) for stage in ramp.stages]
    line = np.polyfit(seen, [stage.batch_size for stage in ramp.stages], 1)
    np.testing.assert_allclose(np.polyval(line, seen), [stage.batch_size for stage in ramp.stages], rtol=0.05)


def test_an_eighth_to_start_with():
    assert [s.batch_size for s in BatchSize(steps=400, batch_size=24, seq_len=5).stages] == [3, 6, 12, 24]
    assert [s.shape for s in SeqLen(steps=40, batch_size=3, seq_len=24).stages] == [(24, 3), (12, 6), (6, 12), (3, 24)]


def test_what_is_said():
    batch_size = BatchSize(steps=200, batch_size=16, seq_len=8, start=4, until=0.4)
    assert say(batch_size) == "batch size 4 → 8 → 16 at steps 40, 80"
    assert say(SeqLen(steps=10, batch_size=2, seq_len=8, start=4, until=0.5)) == "sequence length 4 → 8 at step 5"
    assert say(NoRamp(2, 8)) == ""


@pytest.mark.parametrize("kind", [BatchSize, SeqLen])
@pytest.mark.parametrize("seed", range(30))
def test_parts_are_the_fewest_that_are_no_larger_than_a_micro_batch(kind, seed):
    ramp, given = of(kind, seed)
    n_micro = int(np.random.default_rng(seed).choice([n for n in range(1, 9) if given["batch_size"] % n == 0]))
    parts = n_parts(ramp.stages, n_micro)
    assert parts[ramp.stages[-1].shape] == n_micro
    micro_batch = given["batch_size"] * given["seq_len"] / n_micro
    for rows, length in (stage.shape for stage in ramp.stages):
        fits = [n for n in range(1, rows + 1) if rows % n == 0 and rows / n * length <= micro_batch]
        assert parts[rows, length] == min(fits)


GOOD = {"steps": 100, "batch_size": 16, "seq_len": 32}


@pytest.mark.parametrize("kind", [BatchSize, SeqLen])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"start": 3}, r"ramp\.start=3 must be train\.{key}={full} divided by a power of two: take {half} or"),
        ({"start": 0}, r"ramp\.start=0 must"),
        ({"start": -4}, r"ramp\.start=-4 must"),
        ({"start": 64}, r"ramp\.start=64 must"),
        ({"start": "full"}, r"ramp\.start={full} must"),
        ({"{key}": 12}, r"ramp\.start=null, an eighth, must be train\.{key}=12 divided by a power .*: take 6 or 3$"),
        ({"{key}": 7, "start": 1}, r"ramp\.start=1 must be train\.{key}=7 .*: make train\.{key} even"),
        ({"until": 0.0}, r"ramp\.until=0\.0 must lie between 0 and 1"),
        ({"until": 1.0}, r"ramp\.until=1\.0 must lie between 0 and 1"),
        ({"until": 0.02}, r"ramp\.until=0\.02 of train\.steps=100 is 2 steps, too few for the ramp's stages \(3\)"),
        ({"until": 0.998}, r"ramp\.until=0\.998 of train\.steps=100 leaves no step at full size"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_work(kind, bad, message):
    full = GOOD[kind.grows]
    words = {"key": kind.grows, "full": full, "half": full // 2}
    bad = {k.format(**words): full if v == "full" else v for k, v in bad.items()}
    with pytest.raises(ConfigError, match=message.format(**words)):
        kind(**{**GOOD, **bad})


def test_every_stage_takes_a_whole_batch_of_the_source():
    BatchSize(steps=100, batch_size=16, seq_len=8, until=0.24)
    with pytest.raises(ConfigError, match=r"too few for the ramp's stages \(3\), which take 8 or more each"):
        BatchSize(steps=100, batch_size=16, seq_len=8, until=0.23)


# --- from a configuration ---------------------------------------------------------------------------------------------

CORPORA = ["c4", "dclm", "fineweb_edu", "openwebtext", "stack_python", "tinyshakespeare", "tinystories", "wikitext"]
TEXT = ["hf", "mixture", "python_stdlib", "text", *CORPORA]
PROBLEMS = ["copying", "induction", "mqar"]


def test_every_kind_of_data_is_text_or_problems():
    assert sorted(TEXT + PROBLEMS) == sorted(file.stem for file in (CONF / "data").glob("*.yaml"))


@pytest.mark.parametrize("data", TEXT + PROBLEMS)
def test_problems_are_not_cut(data):
    """A piece of a problem is none."""
    cfg = lmxexp.compose([f"data={data}", "ramp=seq_len"])
    if data in TEXT:
        assert ramp_of(cfg).grows == "seq_len"
    else:
        with pytest.raises(ConfigError, match=f"ramp=seq_len cuts .* data={data} does not say.*: take ramp=batch_size"):
            ramp_of(cfg)
    assert ramp_of(lmxexp.compose([f"data={data}", "ramp=batch_size"])).grows == "batch_size"


def test_it_follows_the_settings_of_training():
    cfg = lmxexp.compose(["ramp=batch_size", "train.steps=90", "train.batch_size=24", "train.seq_len=8"])
    assert ramp_of(cfg).stages[-1].shape == (24, 8)
    assert ramp_of(cfg).stages[-1].start in (26, 27, 28)
    with pytest.raises(ConfigError, match=r"ramp=seq_len ends at 3 sequences of 128 tokens, and the data comes in 16"):
        ramp_of(lmxexp.compose(["ramp=seq_len", "ramp.batch_size=3"]))


def test_none_is_the_default_and_may_be_absent():
    """As in runs from before there were ramps."""
    cfg = lmxexp.compose(["train.batch_size=6", "train.seq_len=10"])
    assert cfg.choice.ramp == "none"
    absent = OmegaConf.create({k: v for k, v in cfg.items() if k != "ramp"})
    for of_both in (cfg, absent):
        ramp = ramp_of(of_both)
        assert ([stage.shape for stage in ramp.stages], ramp.grows) == ([(6, 10)], None)
        source = Numbered(6, 10)
        np.testing.assert_array_equal(ramp.batch(source, 3).inputs, source.batch(3).inputs)


@pytest.mark.parametrize("kind", ["batch_size", "seq_len"])
def test_the_yaml_s_numbers_are_the_constructor_s(kind):
    content = yaml.safe_load((CONF / "ramp" / f"{kind}.yaml").read_text())
    assert (content["start"], content["until"]) == (None, 0.3)
