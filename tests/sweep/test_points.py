"""From overrides to points: against Hydra's own sweeper, and a real file system."""

import math

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from lmxexp.cli.short_names import expand
from lmxexp.compose import install, started
from lmxexp.interfaces import ConfigError
from lmxexp.sweep import points


@pytest.fixture(scope="module", autouse=True)
def _installed():
    install()


def parse(*overrides):
    return OverridesParser.create().parse_overrides(list(overrides))


LINES = [
    ["attention=mha,gqa,mla", "seed=1,2,3"],
    ["seed=1"],
    ["seed=1,2", "train.steps=5", "optim=lion,adamw"],
    ["seed=range(1,4)", "x=range(0,1,0.25)", "y=choice(a,b)"],
    ["z=sort(c,b,a)", "w=sort(3,1,2,reverse=true)"],
    ["a=[1,2],[3,4]", "b=[[x],[y,z]]"],
    ["a={x:1,y:2},{x:3}", "b={q:[1,{r:s}]}"],
    ["a='one two','three, four'", 'b="it\'s",plain'],
    ["a='x=y','{z}'", r"b=a\,b,c"],
    ["a=true,false,null", "b=1e-3,.5,inf,nan"],
    ["a=int(1.5,2.5)", "b=str(1,2)", "c=float(range(1,3))", "d=bool(true,0)"],
    ["+new=1,2", "++forced=3,4", "+model/norm=rmsnorm,layernorm"],
    ["seed=1,2", "seed=3,4,5"],
    ["seed=1,2", "train.steps=1", "seed=7"],
    ["seed=7", "train.steps=1", "seed=1,2"],
    ["attention=mha,gqa", "model/attention=mla"],
    ["model.attention.bias=true,false", "attention.bias=true"],
    ["+seed=1,2", "seed=3"],
    ["attention@ssm=mamba2,mla", "attention@model.ssm=gla,mha", "softcap@score_softcap=tanh,none"],
    ["model/attention@x.y=mha,gqa"],
    ["a=${seed},${oc.env:HOME}", "b=${model.d_model}"],
    ["a=", "b='',x"],
    ["a=tag(t,choice(1,2))", "b=tag(u,v,range(3))"],
    ["callback=[evaluate],[evaluate,checkpoint]", "logger=[]"],
    ["hydra.run.dir=a,b", "hydra.job.name=x"],
    ["p='ä','注意'", "q=/a/b,/c d/e"],
    [],
]


def hydras(overrides):
    """Every point as Hydra's sweeper makes it, the overrides in their long form."""
    [batch] = BasicSweeper.split_arguments(overrides, None)
    return batch


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_the_grid_is_hydras(line):
    overrides = parse(*line)
    ours = points.grid(overrides)
    assert [[expand(text) for text in point] for point in ours] == [
        [expand(text) for text in point] for point in hydras(overrides)
    ]
    for point in ours:  # what a launcher reads again means the same
        values = [o.value() for o in parse(*point)]
        if not any(isinstance(v, float) and math.isnan(v) for v in values):
            assert values == [o.value() for o in parse(*(expand(text) for text in point))]


@pytest.mark.parametrize("shuffled", ["shuffle(0,1,2,3,4,5,6,7)", "shuffle(range(8))"])
def test_shuffled_values_are_all_there_and_always_in_the_same_order(shuffled):
    line = parse(f"y={shuffled}")
    drawn = [points.grid(line) for _ in range(5)]
    assert drawn == [drawn[0]] * 5
    assert drawn[0] != sorted(drawn[0]) == [[f"y={i}"] for i in range(8)]
    assert points.random(line, 3, 0) == points.random(line, 3, 0)


def test_a_pattern_stands_for_the_kinds_that_it_fits():
    with started() as hydra:
        read = OverridesParser.create(config_loader=hydra.config_loader).parse_overrides
        line = read(["attention=glob(*,exclude=[m*,g*])", "schedule=glob(c*)"])
        assert [[expand(text) for text in point] for point in points.grid(line)] == hydras(line)
        assert ["attention=sliding", "schedule=cosine"] in points.grid(line)
        with pytest.raises(ConfigError, match=r"schedule=glob\(x\*\).*no value"):
            points.grid(read(["schedule=glob(x*)", "seed=1,2"]))


def test_the_last_override_changes_fastest_and_names_are_short():
    assert points.grid(parse("model/attention=mha,gqa", "seed=1,2")) == [
        ["attention=mha", "seed=1"],
        ["attention=mha", "seed=2"],
        ["attention=gqa", "seed=1"],
        ["attention=gqa", "seed=2"],
    ]


@pytest.mark.parametrize("line", [["~train.compile", "seed=1,2"], ["~match=none", "seed=3"], ["~attention", "seed=1"]])
def test_what_is_deleted_stays_deleted(line):
    # Hydra's sweeper makes `~train.compile=` of it, which deletes an empty text alone.
    for point in points.grid(parse(*line)):
        [deletion] = [o for o in parse(*point) if o.is_delete()]
        [typed] = [o for o in parse(*line) if o.is_delete()]
        assert (deletion.key_or_group, deletion.value()) == (typed.key_or_group, typed.value())


@pytest.mark.parametrize("draw", [points.grid, lambda o: points.random(o, 3, 0)])
def test_a_sweep_over_no_values_is_refused(draw):
    with pytest.raises(ConfigError, match=r"seed=range\(3,3\).*no value"):
        draw(parse("optim.learning_rate=1,2", "seed=range(3,3)"))


def test_a_range_without_an_end_is_refused():
    with pytest.raises(ConfigError, match=r"seed=range\(1,5,0\)"):
        points.grid(parse("seed=range(1,5,0)"))
    with pytest.raises(ConfigError, match=r"seed=range\(0.5,5,0\)"):
        points.grid(parse("seed=range(0.5,5,0)"))


def test_the_last_mention_of_a_key_counts():
    line = parse("x=interval(0,1)", "y=range(3,3)", "x=1,2", "y=3")
    assert points.grid(line) == [["x=1", "y=3"], ["x=2", "y=3"]]
    assert points.random(line, 5, 0) == points.grid(line)


def test_an_interval_has_no_grid():
    with pytest.raises(ConfigError) as error:
        points.grid(parse("attention.scale=interval(0,1)", "seed=1,2", "optim.learning_rate=tag(log,interval(1,2))"))
    assert "attention.scale=interval(0,1): an interval has no grid" in str(error.value)
    assert "optim.learning_rate=tag(log,interval(1,2))" in str(error.value)
    assert "seed" not in str(error.value)


# What distinguishes points, and their directories


def test_what_varies():
    assert points.varying([["a=1", "b=1", "s=1"], ["a=1", "b=2", "s=1"], ["a=1", "b=2", "s=2"]]) == [
        ["b=1", "s=1"],
        ["b=2", "s=1"],
        ["b=2", "s=2"],
    ]
    assert points.varying([["a=1", "b=1"]]) == [["a=1", "b=1"]]
    assert points.varying([["a=1"], ["a=1"]]) == [[], []]
    assert points.varying([]) == []


ODD = [
    ["p=/etc/passwd", "q=../../x"],
    ["a='one two'", 'b="x"', "c=a\nb\tc"],
    ["a=${seed}", "b=`ls`", "c=$HOME", "d=a;b|c&d", "e=*?<>:\\"],
    ["grüße=ä", "名前=注意", "e=😀"],
    ["a=" + "x" * 5000],
    ["名=" + "注" * 300],
    ["e=" + "😀é" * 200],
    ["a=\0"],
    ["."],
    [".."],
    [],
    ["_"],
    ["a=" + "_" * 300],
    ["a=b "],
    ["a=e\u0301" * 100],
]


@pytest.mark.parametrize("line", ODD, ids=lambda line: repr(line)[:30])
def test_any_override_makes_a_directory(line, tmp_path):
    name = points.directory_name(3, line)
    assert name == "3" or name.startswith("3_")
    assert "/" not in name
    assert name.strip() == name
    # Programs put more behind a name, `.tar.gz` say.
    assert len(name.encode()) <= 200
    (tmp_path / name).mkdir()
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()


def test_names_are_readable_and_differ_by_their_numbers():
    assert points.directory_name(0, ["attention=mha", "seed=1"]) == "0_attention=mha,seed=1"
    assert points.directory_name(12, ["a={x:1}", "+b=[1,2]", "~c", "attention@ssm=mla"]) == (
        "12_a={x-1},+b=[1,2],~c,attention@ssm=mla"
    )
    long = ["a=" + "x" * 400]
    assert points.directory_name(1, [*long, "seed=1"]) != points.directory_name(2, [*long, "seed=2"])
    assert points.directory_name(7, []) == "7"
