"""Several sources in one stream of batches."""

import json
import re
import time
from functools import partial

import numpy as np
import pytest
from omegaconf import OmegaConf

from lmxexp import compose, run
from lmxexp.data.build import build_source
from lmxexp.data.copying import Copying
from lmxexp.data.mixture import Mixture
from lmxexp.data.shares import Shares
from lmxexp.data.text import Text
from lmxexp.interfaces import ConfigError
from lmxexp.logger.jsonl import read_metrics
from lmxexp.population.grouping import groups
from lmxexp.sweep.prepare import Preparation
from lmxexp.tokenizer.byte import ByteTokenizer
from lmxexp.tokenizer.char import CharTokenizer
from tests.end_to_end.processes import SMALL, assert_same_run


def shares(seed):
    """Weights that change, some of them from or to 0, at a few rows."""
    rng = np.random.default_rng(seed)
    k, points = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    weights = rng.random((points, k)) * (rng.random((points, k)) > 0.3)
    weights[:, 0] += 0.01 * (weights.sum(axis=1) == 0)
    begins = np.concatenate([[0], np.sort(rng.choice(np.arange(1, 400), points - 1, replace=False))])
    return Shares(begins, np.ones_like(weights) if seed % 10 == 0 else weights, linear=bool(seed % 2))


@pytest.mark.parametrize("seed", range(60))
def test_each_source_has_its_share_at_any_time(seed):
    of = shares(seed)
    k = len(of.weights_at(0))
    source, number = of.rows(0, 800)
    for i in range(k):
        assert np.array_equal(number[source == i], np.arange(np.sum(source == i))), "its rows, in order, each once"
    counts = np.cumsum(source[:, None] == np.arange(k), axis=0)
    expected = np.cumsum([of.weights_at(row + 0.5) for row in range(800)], axis=0)
    assert np.abs(counts - expected).max() <= max(1.0, k / 2)
    for first in (0, 1, 250, 399, 700):
        assert np.array_equal(of.rows(first, 100)[0], source[first : first + 100])
        assert np.array_equal(of.rows(first, 100)[1], number[first : first + 100])
        assert np.array_equal(of.counts(first + 1), counts[first])
    assert of.counts(0).tolist() == [0] * k


def test_a_source_without_weight_has_no_row():
    source, _ = Shares([0, 100, 200], np.array([[1, 0], [1, 0], [0, 1]]), linear=False).rows(0, 400)
    assert source.tolist() == [0] * 200 + [1] * 200
    late, _ = Shares([0, 100, 300], np.array([[1, 0], [1, 0], [0, 1]]), linear=True).rows(0, 10**4)
    assert not late[:100].any()
    assert late[310:].all()
    assert Shares([0], np.array([[3, 1]]), linear=True).rows(10**12, 8)[0].tolist() == [0, 0, 1, 0, 0, 0, 1, 0]


LETTERS = {"a": ("abc", 900), "b": ("uvwxyz", 2000), "c": ("0123456789", 3000)}


@pytest.fixture
def texts(tmp_path):
    """Three files, of other letters each."""
    found = {name: tmp_path / f"{name}.txt" for name in LETTERS}
    for name, (letters, n) in LETTERS.items():
        found[name].write_text("".join(np.random.default_rng(1).choice(list(letters), n)))
    return found


@pytest.fixture
def make(texts, tmp_path):
    """A mixture of them; settings of a source as ``a={…}``, of all as ``every={…}``."""

    def made(*, seed=1, tokenizer=ByteTokenizer, every=None, more=None, **settings):
        own = {name: {**(every or {}), **settings.pop(name, {})} for name in LETTERS}
        common = {"seq_len": 16, "batch_size": 4, "seed": seed, "cache_dir": str(tmp_path / "cache")}
        sources = {name: partial(Text, **{"path": str(texts[name]), **common, **own[name]}) for name in LETTERS}
        return Mixture(tokenizer, {**sources, **(more or {})}, 16, 4, **{"seed": seed, **settings})

    return made


def letters_of(source, batch):
    """Of each row, the source that its letters are of."""
    rows = [source.tokenizer.decode(row) for row in np.concatenate([batch.inputs, batch.targets], axis=1)]
    assert all(re.fullmatch("[abc]+|[u-z]+|[0-9]+", row) for row in rows)
    return ["a" if row[0] in "abc" else "b" if row[0] in "uvwxyz" else "c" for row in rows]


HALF = {"a": 0.5, "b": 0.25, "c": 0.25}


@pytest.mark.parametrize("order", ["random", "shuffle"])
@pytest.mark.parametrize("tokenizer", [ByteTokenizer, CharTokenizer])
def test_rows_of_all_sources_by_weight(make, tokenizer, order):
    source = make(tokenizer=tokenizer, weights=HALF, every={"order": order})
    for index in (0, 7, 10**9):
        assert sorted(letters_of(source, source.batch(index))) == ["a", "a", "b", "c"]
    of_a = [
        row.tobytes()
        for index in range(30)
        for row, name in zip(source.batch(index).inputs, letters_of(source, source.batch(index)), strict=True)
        if name == "a"
    ]
    per_epoch = source.sources["a"].epoch.per_epoch
    if order == "shuffle":
        assert len(set(of_a[:per_epoch])) == min(per_epoch, len(of_a))
    seen = source.seen(30 * 64)
    assert seen["a/tokens"] == len(of_a) * 16
    assert seen["a/epochs"] == pytest.approx(len(of_a) / per_epoch)
    assert sum(seen[f"{name}/tokens"] for name in "abc") == 30 * 64


def test_one_tokenizer_learns_from_all(make):
    assert make(tokenizer=CharTokenizer).vocab_size == 3 + 6 + 10 + 1, "and the newline between documents"


def test_without_weights_by_tokens(make):
    weights = make().record["weights"]
    assert [round(weights[name], 3) for name in "abc"] == [0.153, 0.339, 0.508]


def test_curricula(make):
    settings = {"weights": {"a": 1, "b": 0, "c": 0}, "curriculum": [{"batch": 40, "weights": {"a": 0, "b": 0, "c": 1}}]}
    linear = make(**settings)
    names = [letters_of(linear, linear.batch(i)) for i in range(56)]
    share = [np.mean([name == "c" for batch in names[n : n + 8] for name in batch]) for n in range(0, 56, 8)]
    assert share == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9, 1, 1], abs=0.05)
    stages = make(change="stages", **settings)
    assert letters_of(stages, stages.batch(39)) == ["a"] * 4
    assert letters_of(stages, stages.batch(40)) == ["c"] * 4


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_global_batch(make, world):
    source = make(every={"document_mask": True}, b={"packing": "best_fit"})
    for index in (0, 5):
        whole = source.batch(index)
        joined = [source.batch(index, rank=r, world=world) for r in range(world)]
        for values, parts in zip(whole, zip(*joined, strict=True), strict=True):
            assert np.array_equal(np.concatenate(parts), values)


def test_batches_are_of_one_structure(make):
    """Whether or not a row of the source that has weights is among theirs."""
    source = make(a={"packing": "best_fit"}, weights={"a": 1, "b": 8, "c": 8})
    batches = [source.batch(index) for index in range(8)]
    assert {"a" in letters_of(source, batch) for batch in batches} == {True, False}
    assert all(batch.weights is not None for batch in batches)
    assert make().batch(0).weights is None


def test_seeds(make):
    one, other = make(), make(seed=2)
    assert np.array_equal(one.batch(3).inputs, make().batch(3).inputs)
    assert not np.array_equal(one.batch(3).inputs, other.batch(3).inputs)
    assert one.fingerprint == other.fingerprint
    assert one.sources["a"].seed != one.sources["b"].seed


def test_a_batch_takes_well_under_a_step(make):
    source = make(weights=HALF, curriculum=[{"batch": 40, "weights": {"a": 1, "b": 1, "c": 1}}])
    times = []
    for index in range(50):
        start = time.process_time()
        source.batch(index)
        times.append(time.process_time() - start)
    assert np.median(times) < 4e-3  # 0.3 ms of a processor


def test_a_run_tells_each_source_and_resumes_to_the_bit(texts, tmp_path, monkeypatch):
    monkeypatch.setenv("LMXEXP_CACHE", str(tmp_path / "cache"))
    settings = [
        *(o for o in SMALL if not o.startswith("data")),
        "data=mixture",
        "data.weights={a:0.5,b:0.25,c:0.25}",
        "data.curriculum=[{batch:9,weights:{a:0,b:1,c:1}}]",
        *(f"+data@data.sources.{name}=text" for name in "abc"),
        *(f"data.sources.{name}.path={path}" for name, path in texts.items()),
        *(f"data.sources.{name}.{s}" for name in "abc" for s in ("document_mask=true", "max_eval_tokens=64")),
        "data.sources.a.order=shuffle",
        "data.sources.b.packing=best_fit",
    ]
    run(compose(settings), tmp_path / "whole")
    assert run(compose(settings), tmp_path / "part", until=6).status == "paused"
    run(compose([f"resume={tmp_path / 'part'}"]))
    assert_same_run(tmp_path / "part", tmp_path / "whole")
    lines = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    source = build_source(compose(settings))
    for line in lines:
        assert {k: v for k, v in line.items() if k.startswith("data/")} == {
            f"data/{k}": v for k, v in source.seen(int(line["tokens"])).items()
        }
    last = lines[-1]
    assert last["eval/loss"] == pytest.approx(np.mean([last[f"eval/{name}/loss"] for name in "abc"]))
    assert last["eval/a/loss"] != last["eval/b/loss"]
    record = json.loads((tmp_path / "whole" / "run.json").read_text())["data"]
    assert record["sources"]["b"]["packing"]["rows"] > 0
    assert record["eval_targets"] == record["eval_bytes"] == 3 * 64
    assert (
        Preparation().identity(compose(settings))
        == json.loads((tmp_path / "whole" / "run.json").read_text())["identity"]
    )
    configs = [OmegaConf.to_container(compose([*settings, f"seed={seed}"]), resolve=True) for seed in (1, 2)]
    assert groups(configs) == [[0, 1]], "in one population"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"a": 1, "b": 1}}, r"data\.weights=.* must name the sources a, b, c, each once"),
        ({"weights": {"a": -1, "b": 1, "c": 1}}, "must not be negative"),
        ({"weights": {"a": 0, "b": 0, "c": 0}}, "some must be positive"),
        ({"change": "stages"}, "data.change=stages would be ignored"),
        ({"curriculum": [{"batch": 0, "weights": HALF}]}, r"data\.curriculum\.0\.batch=0 must come after 0"),
        ({"curriculum": [{"step": 3, "weights": HALF}]}, r"data\.curriculum\.0=.*expected \{batch: N"),
        ({"a": {"seq_len": 8}}, r"data\.sources\.a\.seq_len=8 differs from the mixture's, which is 16"),
        ({"a": {"seed": 8}}, r"data\.sources\.a\.seed=8, .* would be ignored: set data\.seed"),
        ({"a": {"document_mask": True}}, r"document_mask differs \(a: true, b: false, c: false\)"),
        ({"more": {"d": partial(Copying, 16, 4, seed=1)}}, r"data\.sources\.d is no text"),
        ({"more": {"loss": partial(Copying, 16, 4, seed=1)}}, r"take another word"),
        ({"more": {"d": 5}}, r"choose one by \+data@data\.sources\.d=KIND"),
        ({"a": {"path": "nowhere.txt"}}, r"data\.sources\.a: data\.path=nowhere\.txt does not exist"),
    ],
)
def test_what_cannot_work(make, settings, message):
    with pytest.raises(ConfigError, match=message):
        make(**settings)


def test_a_mixture_of_nothing_says_how_to_fill_it():
    with pytest.raises(ConfigError, match=r"such as \+data@data\.sources\.code=python_stdlib"):
        build_source(compose(["data=mixture"]))
