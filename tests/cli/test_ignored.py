import pytest
from omegaconf import OmegaConf, open_dict

import lmxexp
from lmxexp.cli.read_settings import ReadSettings
from lmxexp.cli.validate import check
from lmxexp.interfaces import ConfigError


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.n_kv_heads=2", "position=alibi"],
        ["attention=mha", "model.n_heads=8", "size=tiny", "position=none"],
        ["softcap@score_softcap=tanh", "model.score_softcap.cap=10.0"],
        ["optim={learning_rate: 0.01}", "train.steps=5", "logger=[jsonl]", "callback=[]", "position=learned"],
        ["seed=2", "name=x", "tags=[a,b]", "debug=default", "debug.traceback=true", "optim=lion"],
        ["data.seed=3", "norm=layernorm", "model.bias=true"],
    ],
)
def test_what_is_read_passes(overrides):
    check(lmxexp.compose(overrides), overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["attention=mha", "model.n_kv_heads=2"], "model.n_kv_heads=2 would be ignored: nothing in this run reads"),
        (["attention=mha", "model.n_kv_heads=2"], "reads model.n_kv_heads; it is read by attention="),
        (["+foo=3"], "+foo=3 would be ignored: nothing in this run reads foo"),
        (["+model={a: 1, d_model: 8}"], "nothing in this run reads model.a"),
        (["choice.model=x"], "choice.model"),
    ],
)
def test_what_nothing_reads_is_refused(overrides, said):
    composed = [o for o in overrides if not o.startswith("choice")]
    with pytest.raises(ConfigError) as raised:
        check(lmxexp.compose(composed), overrides)
    assert said in str(raised.value)


def without_positions(cfg):
    """A mixer without scores has nowhere to put them."""
    with open_dict(cfg):
        del cfg.model.attention["position"]


def test_a_position_is_refused_where_the_mixer_reads_none():
    cfg = lmxexp.compose(["position=alibi"])
    without_positions(cfg)
    said = r"position=alibi would be ignored: .* model.position.attention; it is read by attention=.*\bmha\b"
    with pytest.raises(ConfigError, match=said):
        check(cfg, ["position=alibi"])
    check(cfg, ["attention=gqa"])
    cfg = lmxexp.compose(["position=learned"])
    without_positions(cfg)
    check(cfg, ["position=learned"])  # added to the token's vector, whatever the mixer


def test_a_kind_that_no_one_reads_is_refused():
    cfg = lmxexp.compose(["norm=layernorm"])
    cfg.model.net.norm = "${model.qk_norm}"
    cfg.model.block.norm = "${model.qk_norm}"
    with pytest.raises(ConfigError, match="norm=layernorm would be ignored"):
        check(cfg, ["norm=layernorm"])


TREE = OmegaConf.create(
    {
        "root": {"a": "${x.y}", "b": "${.c}", "c": "${..top}", "d": "pre-${mid}-${oc.env:HOME,x}", "e": ["${z}"]},
        "x": {"y": "${link.deep}", "unread": 1},
        "link": "${target}",
        "target": {"deep": {"p": 1, "q": "${which.${pick}}"}, "shallow": 2},
        "which": {"one": "${last}", "two": 2},
        "pick": "one",
        "top": 1,
        "mid": "m",
        "z": 3,
        "last": {"s": 1},
        "selected": 4,
        "f": "${oc.select:selected,0}",
        "lonely": 1,
    }
)


def test_interpolations_are_followed_wherever_they_lead():
    read = ReadSettings(TREE, ("root", "f"))
    for path in ("x.y", "target.deep", "target.deep.p", "which.one", "last.s", "pick", "top", "mid", "z", "selected"):
        assert read.is_read(path), path
    for path in ("x.unread", "target.shallow", "which.two", "lonely"):
        assert not read.is_read(path), path
    assert read.is_read("link.deep.p"), "by the name of the link too"
    assert read.source("root.a") == "target.deep"
    assert read.raw("link.deep.p") == 1


def test_a_circle_ends():
    cfg = OmegaConf.create({"a": "${b}", "b": "${a}"})
    assert ReadSettings(cfg, ("a",)).is_read("b")
