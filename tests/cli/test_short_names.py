from pathlib import Path

import pytest
from omegaconf import OmegaConf

import lmxexp
from lmxexp.cli import conf, short_names


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("attention=gqa", "model/attention=gqa"),
        ("attention.n_heads=4", "model.attention.n_heads=4"),
        ("++attention.new=4", "++model.attention.new=4"),
        ("+attention=gqa", "+model/attention=gqa"),
        ("~attention", "~model/attention"),
        ("~attention.bias", "~model.attention.bias"),
        ("attention=a,b", "model/attention=a,b"),
        ("attention=choice(a,b)", "model/attention=choice(a,b)"),
        ("attention@ssm=mla", "model/attention@model.ssm=mla"),
    ],
)
def test_short_and_long_forms_are_each_others(short, long):
    assert short_names.expand(short) == long
    assert short_names.expand(long) == long
    assert short_names.shorten(long) == short
    assert short_names.shorten(short) == short


@pytest.mark.parametrize(
    "override",
    [
        "optim=lion",
        "model=llama",
        "model.d_model=8",
        "seed=1",
        "attentions=1",
        "hydra.run.dir=model/attention",
        "=",
        "",
    ],
)
def test_everything_else_stays(override):
    assert short_names.expand(override) == override
    assert short_names.shorten(override) == override


def test_the_package_form_with_a_full_package_stays_below_model():
    assert short_names.expand("attention@model.ssm=mla") == "model/attention@model.ssm=mla"
    assert short_names.expand("attention@_global_=mla") == "model/attention@_global_=mla"


def test_every_folder_of_the_model_has_a_short_name():
    folders = conf.folders(conf.conf_dir() / "model")
    assert len(folders) >= 8
    assert set(short_names.short_names()) == set(folders)


def test_a_users_folder_has_one_too_but_a_group_at_the_top_goes_first(monkeypatch, tmp_path):
    for group in ("model/gate", "model/optim", "model/_hidden"):
        (tmp_path / group).mkdir(parents=True)
    monkeypatch.setattr(conf, "directories", lambda: [conf.conf_dir(), tmp_path])
    assert short_names.expand("gate=x") == "model/gate=x"
    assert short_names.expand("optim=x") == "optim=x"
    assert short_names.expand("_hidden=x") == "_hidden=x"


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["attention=mqa"], "model.attention.n_kv_heads", 1),
        (["model/attention=mqa"], "model.attention.n_kv_heads", 1),
        (["attention.n_kv_heads=3"], "model.attention.n_kv_heads", 3),
        (["model=gpt", "attention=sliding", "attention.reach.window=5"], "model.attention.reach.window", 5),
        (["softcap@score_softcap=tanh", "softcap@model.logit_softcap=tanh"], "choice.softcap@score_softcap", "tanh"),
        (["size=10m"], "choice.size", "10m"),
    ],
)
def test_composition_understands_both(overrides, key, value):
    assert OmegaConf.select(lmxexp.compose(overrides), key) == value


class Completer:
    """What Hydra would answer, by the line it is asked."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def __call__(self, line):
        self.asked.append(line)
        return self.answer


@pytest.mark.parametrize(
    ("typed", "asked", "answer", "shown"),
    [
        ("attention=", "model/attention=", ["model/attention=gqa"], ["attention=gqa"]),
        ("model/attention=g", "model/attention=g", ["model/attention=gqa"], ["model/attention=gqa"]),
        ("attention.n", "model.attention.n", ["model.attention.n_heads="], ["attention.n_heads="]),
        ("att", "att", [], ["attention="]),
        ("seed=3 -m att", "-m seed=3 att", [], ["attention="]),
        ("model=", "model=", ["model=_base", "model=gpt"], ["model=gpt"]),
    ],
)
def test_completion_shows_the_form_that_is_typed(typed, asked, answer, shown):
    query = Completer(answer)
    assert short_names.complete(query, None, typed) == shown
    assert query.asked == [asked] or (query.asked == [" " + asked])


def test_completion_of_a_palette_entry():
    found = short_names.complete(
        None, lambda group: ["none", "tanh"] if group == "model/softcap" else [], "softcap@x=t"
    )
    assert found == ["softcap@x=tanh"]


def test_the_repository_is_where_it_is_thought():
    assert conf.conf_dir() == Path(lmxexp.__file__).parents[1] / "conf"
