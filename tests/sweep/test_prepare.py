"""What is found wrong with a point before anything runs, and what is done for several points once."""

import importlib

import mlx.core as mx
import pytest
from omegaconf import OmegaConf

from lmxexp import compose, run
from lmxexp.interfaces import ConfigError
from lmxexp.model.attention.gqa import GroupedQueryAttention
from lmxexp.sweep.prepare import Preparation, resolved
from tests.end_to_end.processes import small

source_module = importlib.import_module("lmxexp.data.build")
build_module = importlib.import_module("lmxexp.build")


@pytest.fixture
def cfg(tmp_path):
    """``cfg("attention=mqa")``: a small configuration; what it says itself takes the place of what is small."""

    def make(*overrides):
        keys = {o.partition("=")[0] for o in overrides}
        if any(o.startswith(("attention=", "model=")) for o in overrides):
            keys.add("model.n_kv_heads")  # which not all have
        if any(o.startswith("callback=") for o in overrides):
            keys.add("callback.sample.max_tokens")
        return compose([*(o for o in small(tmp_path) if o.partition("=")[0] not in keys), *overrides])

    return make


MISTAKES = [
    (["model.n_heads=3"], "model.n_heads=3"),
    (["model=gpt", "model.position.embedding.max_len=8"], "train.seq_len=16: the model has positions for 8 tokens"),
    (["attention=sliding", "attention.reach.window=0"], "window=0"),
    (["model.init.std=-1"], "model.init.std=-1"),
    (["train.n_micro=3"], "train.n_micro=3"),
    (["optim.learning_rate=0"], "optim.learning_rate=0"),
    (["schedule.warmup_steps=99"], "schedule.warmup_steps=99"),
    (["loss.z_loss=-1"], "loss.z_loss=-1"),
    (["callback.sample.max_tokens=0"], "callback.sample.max_tokens=0"),
    (["logger=[wandb]", "logger.wandb.init_timeout=0"], "logger.wandb.init_timeout=0"),
    (["data.val_fraction=2"], "data.val_fraction=2"),
    (["data.path=nowhere.txt"], "data.path=nowhere.txt"),
]


@pytest.mark.parametrize(
    ("overrides", "text"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_mistakes_are_found(cfg, overrides, text):
    with pytest.raises(ConfigError, match=text.replace(".", r"\.")):
        Preparation().try_out(cfg(*overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model=gpt"],
        ["model=mamba2"],
        ["callback=[]", "logger=[]"],
        ["tokenizer=char"],
        ["data=mqar", "train.seq_len=64"],
    ],
    ids=" ".join,
)
def test_what_works_is_let_through_and_stays_as_it_was(cfg, overrides):
    made = (
        cfg(*(o for o in overrides))
        if overrides[:1] != ["data=mqar"]
        else compose([*overrides, "model.d_model=32", "model.n_heads=2"])
    )
    before = OmegaConf.to_yaml(made)
    assert Preparation().try_out(made) is None
    Preparation().identity(made)
    assert OmegaConf.to_yaml(made) == before


def test_a_mistake_that_was_found_once_is_found_again(cfg):
    preparation = Preparation()
    for _ in range(2):
        with pytest.raises(ConfigError, match="n_heads=3"):
            preparation.try_out(cfg("model.n_heads=3"))


def test_a_configuration_that_is_resolved_already_is_the_same(cfg):
    made = cfg("tokenizer=char")
    assert Preparation().identity(made) == Preparation().identity(made, resolved(made))


def test_random_numbers_stay_as_they_are(cfg):
    mx.random.seed(3)
    expected = mx.random.uniform().item()
    mx.random.seed(3)
    Preparation().try_out(cfg())
    Preparation().identity(cfg("seed=2"))
    assert mx.random.uniform().item() == expected


@pytest.fixture
def counted(monkeypatch):
    """How often data was read and a model made."""
    calls = {"data": 0, "model": 0}
    source, build = source_module.build_source, build_module.build

    def build_source(cfg):
        calls["data"] += 1
        return source(cfg)

    def build_node(node):
        calls["model"] += "pattern" in (node or {})
        return build(node)

    monkeypatch.setattr(source_module, "build_source", build_source)
    monkeypatch.setattr(build_module, "build", build_node)
    return calls


def test_points_share_what_is_equal(cfg, counted):
    preparation = Preparation()
    for seed in (1, 2, 3):
        made = cfg(f"seed={seed}", "data.seed=0", "tags=[x]")
        preparation.identity(made)
        preparation.try_out(made)
    assert counted == {"data": 1, "model": 1}
    preparation.try_out(cfg("model.d_model=64", "data.seed=0"))
    assert counted == {"data": 1, "model": 2}
    preparation.try_out(cfg("tokenizer=char", "data.seed=0"))
    assert counted == {"data": 2, "model": 3}, "another vocabulary makes another model"
    preparation.try_out(cfg("callback.sample.max_tokens=9", "data.seed=0"))
    assert counted == {"data": 2, "model": 4}


def test_tokens_are_in_the_cache_afterwards(cfg, tmp_path, monkeypatch):
    """So that no point waits for another's, or makes them twice."""
    made = cfg("tokenizer=bpe", "tokenizer.vocab_size=300", f"data.cache_dir={tmp_path}/cache")
    Preparation().identity(made)
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*") if p.is_file()}
    assert written
    source_module.build_source(made.copy())
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*") if p.is_file()} == written


class AcrossDocuments(GroupedQueryAttention):
    """A mixer that says that it cannot keep documents apart."""

    def __call__(self, x, *, cache=None, segment_ids=None, shared=None):
        if segment_ids is not None:
            raise NotImplementedError("all positions are seen")
        return super().__call__(x, cache=cache, shared=shared)


class AcrossSilently(GroupedQueryAttention):
    """One that says nothing."""

    def __call__(self, x, *, cache=None, segment_ids=None, shared=None):
        return super().__call__(x, cache=cache, shared=shared)


@pytest.mark.parametrize(("kind", "why"), [(AcrossDocuments, "all positions are seen"), (AcrossSilently, "not heed")])
def test_a_mixer_that_cannot_keep_documents_apart_is_refused(cfg, tmp_path, kind, why):
    mixer = f"model.attention._target_={__name__}.{kind.__name__}"
    masked = cfg(mixer, "data.document_mask=true")
    with pytest.raises(ConfigError, match=rf"data\.document_mask=true: .*{why}.*take another attention"):
        run(masked, tmp_path / "run")
    if kind is AcrossDocuments:
        with pytest.raises(ConfigError, match=why):
            Preparation().try_out(masked)
    Preparation().try_out(cfg(mixer))
