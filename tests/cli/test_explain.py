import pytest

import lmxexp
from lmxexp.cli.errors import near
from lmxexp.interfaces import ConfigError

MISTAKES = [
    ("attention=gqq", "attention=gqq: no such kind; did you mean gqa? attention has: "),
    ("model/attention=gqq", "no such kind; did you mean gqa?"),
    ("attention=3", "attention=3: no such kind; attention has: "),
    ("atention=gqa", "atention=gqa: no such group; did you mean attention?"),
    ("model/atention=gqa", "no such group; did you mean attention?"),
    ("optimizer=lion", "optimizer=lion: no such group; did you mean optim?"),
    ("train.step=5", "train.step=5: no such key; did you mean train.steps?"),
    ("sed=3", "sed=3: no such key; did you mean seed?"),
    ("n_heads=3", "n_heads=3: no such group or key; did you mean model.n_heads?"),
    ("score_softcap.cap=3", "did you mean model.score_softcap.cap?"),
    ("attention.n_headz=3", "attention.n_headz=3: no such key; did you mean attention.n_heads?"),
    ("ramp.start=2", "ramp.start=2: no such key; what is chosen as ramp here has no settings"),
    ("train.xyz=3", "train.xyz=3: no such key; train has: steps, batch_size"),
    ("xyz=3", "xyz=3: no such group or key"),
    ("softcap=tanh", "say softcap@logit_softcap=tanh or softcap@score_softcap=tanh"),
    ("softcap@score_softcap.cap=3", "a setting is written with dots alone: model.score_softcap.cap=3"),
    ("attention@ssm=mha", "attention@ssm=mha: model=llama has attention@ssm in another place: say attention=mha"),
    ("attention={window: 3}", "attention is a group: choose a kind, or set one key, attention.KEY=VALUE"),
    ("+train.steps=3", "+train.steps=3: train.steps is there already; write train.steps=3"),
    ("logger=[jsonl,wadb]", "logger=wadb: no such kind; did you mean wandb?"),
    ("train.steps", "train.steps: an override is written key=value"),
    ("train.steps=[1", "train.steps=[1: not a value that can be read"),
    ("name=a:b}", "name=a:b}: not a value that can be read"),
    ("hydra.run.dirr=3", "hydra.run.dirr=3: no such key; did you mean hydra.run.dir?"),
    ("optim=adamw,lion", "optim=adamw,lion: several values need --multirun (-m)"),
]


def test_what_was_meant_is_offered_for_all_mistakes_at_once():
    # Each composition costs a third of a second, so they are made together.
    overrides = [override for override, _ in MISTAKES]
    with pytest.raises(ConfigError) as raised:
        lmxexp.compose(["seed=1", "norm=layernorm", *overrides])
    first, *told = str(raised.value).splitlines()
    assert first == f"{len(overrides)} settings cannot work:"
    assert len(told) == len(overrides)
    for override, said in MISTAKES:
        assert [line for line in told if said in line], (override, told)


def test_one_mistake_is_one_line():
    with pytest.raises(ConfigError, match=r"\Atrain\.step=5: no such key; did you mean train\.steps\?\Z"):
        lmxexp.compose(["train.step=5"])


def test_a_mistake_in_a_users_file_is_told_by_hydra_without_its_search_path(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /optim: adamv\n")
    with pytest.raises(ConfigError) as raised:
        lmxexp.compose(["experiment=mine"], config_dir=tmp_path)
    assert "Could not find 'optim/adamv'" in str(raised.value)
    assert "adamw" in str(raised.value)
    assert "search path" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("word", "known", "close"),
    [
        ("gqq", ["gqa", "mha"], "gqa"),
        ("opti", ["optim"], "optim"),
        ("xyz", ["gqa"], None),
        ("norm", ["normal"], "normal"),
    ],
)
def test_near(word, known, close):
    assert near(word, known) == close
