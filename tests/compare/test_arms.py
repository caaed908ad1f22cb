"""Which runs are one arm, and what it is called."""

import pytest

from lmxexp.compare.arms import group, hidden_axes
from lmxexp.compare.axes import is_difference
from lmxexp.compare.read import find_runs
from lmxexp.interfaces import ConfigError
from tests.compare.made_runs import make_run, make_sweep, memory_run

POSITIONS = ("position.attention", "attention.position", "net.blocks.layer.mixer.position")


def runs_of(*designs, seeds=(1, 2)):
    return [memory_run(choices, settings, seed=seed) for choices, settings in designs for seed in seeds]


def labels(runs, **arguments):
    return [arm.label for arm in group(runs, **arguments)]


def seeds(runs, **arguments):
    return [[run.seed for run in arm.runs] for arm in group(runs, **arguments)]


def test_seeds_are_one_arm_in_their_order():
    runs = runs_of(({"attention": "mha"}, {}), ({"attention": "gqa"}, {}), seeds=(3, 1, 2))
    assert labels(runs) == ["attention=mha", "attention=gqa"]
    assert seeds(runs) == [[1, 2, 3], [1, 2, 3]]


@pytest.mark.parametrize(
    ("designs", "expected"),
    [
        # A choice brings its own settings, and copies of them in the net: none of these is told.
        ([({"attention": "mha"}, {}), ({"attention": "sliding"}, {})], ["attention=mha", "attention=sliding"]),
        # A size brings d_model and its copies.
        ([({"size": "tiny"}, {}), ({"size": "10m"}, {})], ["size=tiny", "size=10m"]),
        # A preset chooses attention and norm.
        (
            [
                ({"model": "llama", "attention": "gqa"}, {}),
                ({"model": "gpt", "attention": "mha", "norm": "layernorm"}, {}),
            ],
            ["model=llama", "model=gpt"],
        ),
        # One preset with two kinds of attention.
        (
            [({"model": "llama"}, {}), ({"model": "gpt", "attention": "mha"}, {}), ({"model": "gpt"}, {})],
            ["model=llama attention=gqa", "model=gpt attention=mha", "model=gpt attention=gqa"],
        ),
        # What is set once, and copied by interpolations to other places.
        ([({}, {"model.d_ff": 256}), ({}, {"model.d_ff": 512})], ["model.d_ff=256", "model.d_ff=512"]),
        (
            [({}, {"train.steps": 100, "schedule.steps": 100}), ({}, {"train.steps": 200, "schedule.steps": 200})],
            ["train.steps=100", "train.steps=200"],
        ),
        # What a choice brings, and copies of it where another choice takes it.
        (
            [
                ({"position": "rope"}, {f"model.{place}.theta": 1e4 for place in POSITIONS}),
                ({"position": "none"}, dict.fromkeys((f"model.{place}" for place in POSITIONS), None)),
            ],
            ["position=rope", "position=none"],
        ),
        # A number that a kind has and another has not.
        (
            [({"attention": "gqa"}, {"model.n_kv_heads": 1}), ({"attention": "gqa"}, {"model.n_kv_heads": 4})],
            ["model.n_kv_heads=1", "model.n_kv_heads=4"],
        ),
        (
            [({}, {"model.attention.scale": 0.5}), ({}, {"model.attention.scale": 1.0})],
            ["attention.scale=0.5", "attention.scale=1"],
        ),
        # Two designs that differ in two things are called by both: neither follows from the other.
        (
            [
                ({"attention": "mha"}, {"optim.learning_rate": 0.001}),
                ({"attention": "gqa"}, {"optim.learning_rate": 0.003}),
            ],
            ["attention=mha optim.learning_rate=0.001", "attention=gqa optim.learning_rate=0.003"],
        ),
        # A kind of a group beside the model brings its node.
        ([({"optim": "adamw"}, {}), ({"optim": "lion"}, {"optim.eps": None})], ["optim=adamw", "optim=lion"]),
        (
            [({}, {"optim.betas": [0.9, 0.95]}), ({}, {"optim.betas": [0.9, 0.99]})],
            ["optim.betas=[0.9,0.95]", "optim.betas=[0.9,0.99]"],
        ),
    ],
)
def test_labels_are_the_words_that_choose(designs, expected):
    runs = runs_of(*designs)
    assert labels(runs) == expected
    assert seeds(runs) == [[1, 2]] * len(expected)


@pytest.mark.parametrize(
    "key",
    ["seed", "data.seed", "callback.sample.seed", "name", "tags", "logger.wandb.project", "choice.logger", "resume",
     "data.path", "data.val_path", "data.cache_dir", "train.log_every", "callback.evaluate.every", "debug.traceback",
     "match.kind"],
)  # fmt: skip
def test_no_difference(key):
    assert not is_difference(key)
    designs = [({}, {key: value}) for value in ("one", "two")]
    assert len(group(runs_of(*designs, seeds=(1,)))) == 1


@pytest.mark.parametrize("key", ["train.steps", "model.d_ff", "choice.optim", "data.val_fraction", "train.precision"])
def test_a_difference(key):
    assert is_difference(key)


def test_one_arm_is_called_by_the_name_of_its_runs():
    assert labels(runs_of(({}, {}))) == ["llama-gqa"]


MATCHED = [
    {"choices": {"attention": kind}, "seed": seed, "adjusted": adjusted}
    for kind, adjusted in (("mha", {}), ("gqa", {"model.d_ff": 352}), ("mqa", {"model.d_ff": 368}))
    for seed in (1, 2)
]


def test_what_match_solved_for_is_no_part_of_the_label(tmp_path):
    runs = find_runs([make_sweep(tmp_path / "s", MATCHED)])
    assert labels(runs) == ["attention=mha", "attention=gqa", "attention=mqa"]
    assert hidden_axes(runs, ["attention"]) == []
    assert runs[2].flat["model.ffn.d_ff"] == 352  # a copy, which is not told either


def test_a_matched_and_a_plain_sweep_are_not_mixed(tmp_path):
    make_sweep(tmp_path / "a", MATCHED)
    make_sweep(tmp_path / "b", [{**point, "adjusted": {}} for point in MATCHED])
    arms = group(find_runs([tmp_path]))
    assert len(arms) == len({arm.label for arm in arms}) == 6
    assert all(len({run.sweep for run in arm.runs}) == 1 for arm in arms)


def test_failed_points_without_a_configuration_join_their_arm(tmp_path):
    early = {"status": "failed", "error": "boom", "early": True}
    points = [*MATCHED, {"choices": {"attention": "gqa"}, "seed": 3, **early}]
    points += [{"choices": {"attention": "mla"}, "seed": seed, **early} for seed in (1, 2)]
    for by in (None, ["attention"]):
        arms = group(find_runs([make_sweep(tmp_path / f"s{by}", points)]), by)
        assert [(arm.label, len(arm.runs), len(arm.failed)) for arm in arms] == [
            ("attention=mha", 2, 0), ("attention=gqa", 2, 1), ("attention=mqa", 2, 0), ("attention=mla", 0, 2),
        ]  # fmt: skip


def test_a_failed_point_has_what_its_sweep_has_in_common(tmp_path):
    points = [{"choices": {"attention": kind}, "seed": 1} for kind in ("mha", "gqa")]
    points += [{"choices": {"attention": "mha"}, "seed": 2, "status": "failed", "early": True}]
    assert labels(find_runs([make_sweep(tmp_path / "s", points)]), by=["optim"]) == ["optim=adamw"]


def test_by_words():
    runs = runs_of(
        *(({"attention": kind}, {"optim.learning_rate": rate}) for kind in ("mha", "gqa") for rate in (0.001, 0.003))
    )
    assert labels(runs, by=["attention"]) == ["attention=mha", "attention=gqa"]
    assert [len(arm.runs) for arm in group(runs, ["attention"])] == [4, 4]
    assert labels(runs, by=["optim.learning_rate"]) == ["optim.learning_rate=0.001", "optim.learning_rate=0.003"]
    assert len(labels(runs, by=["optim.learning_rate", "attention"])) == 4
    assert labels(runs, by=["attention.n_kv_heads"]) == ["no attention.n_kv_heads", "attention.n_kv_heads=2"]
    assert [axis.name for axis in hidden_axes(runs, ["attention"])] == ["optim.learning_rate"]
    assert hidden_axes(runs, ["attention", "optim.learning_rate"]) == []
    assert hidden_axes(runs, None) == []


def test_by_sweep(tmp_path):
    for name in ("a", "b"):
        make_sweep(tmp_path / name, MATCHED[:2])
    assert labels(find_runs([tmp_path]), by=["sweep"]) == ["sweep=a", "sweep=b"]


def test_sweeps_of_one_name_are_told_by_their_directories(tmp_path):
    for name in ("a", "b"):
        make_sweep(tmp_path / name / "s", MATCHED[:2])
    expected = [f"sweep={tmp_path / name / 's'}" for name in ("a", "b")]
    assert labels(find_runs([tmp_path]), by=["sweep"]) == expected
    assert labels(find_runs([tmp_path / "a"]), by=["sweep"]) == ["sweep=s"]


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (["atention"], r"--by atention: no run has .*; did you mean attention\?"),
        (["zzz"], r"--by zzz: no run .*such as attention"),
        (["seed"], "--by seed: runs of different seeds are one arm"),
        (["data.seed"], "--by data.seed"),
    ],
)
def test_words_that_mean_nothing(by, message):
    with pytest.raises(ConfigError, match=message):
        group(runs_of(({}, {})), by)


def test_ignored_keys_make_no_arms():
    runs = runs_of(*(({"attention": k}, {"optim.learning_rate": r}) for k in ("mha", "gqa") for r in (0.001, 0.003)))
    arms = group(runs, ignore=["optim.learning_rate"])
    assert [(arm.label, len(arm.runs)) for arm in arms] == [("attention=mha", 4), ("attention=gqa", 4)]


def test_a_setting_that_is_equal_by_chance_is_no_copy():
    """Muon's AdamW has a learning rate of its own: at one value of the tuned one the two are the same."""
    points = [("adamw", r, None) for r in (0.001, 0.003)] + [("muon", r, 0.001) for r in (0.001, 0.003)]
    runs = [
        memory_run(
            {"optim": kind},
            {"optim.learning_rate": rate} | ({} if inner is None else {"optim.adamw.learning_rate": inner}),
        )
        for kind, rate, inner in points
    ]
    arms = group(runs, ignore=["optim.learning_rate"])
    assert [(arm.label, len(arm.runs)) for arm in arms] == [("optim=adamw", 2), ("optim=muon", 2)]


def test_a_copy_of_an_ignored_key_makes_no_arm():
    runs = [
        memory_run({"attention": kind}, {"optim.learning_rate": rate, "optim.inner.learning_rate": rate})
        for kind in ("mha", "gqa")
        for rate in (0.001, 0.003)
    ]
    arms = group(runs, ignore=["optim.learning_rate"])
    assert [(arm.label, len(arm.runs)) for arm in arms] == [("attention=mha", 2), ("attention=gqa", 2)]


def test_a_repeated_seed_counts_once(tmp_path):
    for name, month in (("b_old", 1), ("c_new", 3), ("a_middle", 2)):
        make_run(tmp_path / name, seed=1, record={"started": f"2026-0{month}-01T00:00:00+0000"})
    make_run(tmp_path / "other", seed=2)
    (arm,) = group(find_runs([tmp_path]))
    assert [run.name for run in arm.runs] == ["c_new", "other"]
    assert sorted(run.name for run in arm.repeated) == ["a_middle", "b_old"]


def test_another_data_seed_is_no_repetition():
    runs = [memory_run({}, {"data.seed": seed}, seed=1) for seed in (1, 2)]
    (arm,) = group(runs)
    assert len(arm.runs) == 2


def test_status_decides():
    runs = [memory_run(seed=i, status=s) for i, s in enumerate(("ok", "diverged", "ok", "pruned", "waiting"))]
    (arm,) = group(runs)
    assert [run.status for run in arm.runs] == ["ok", "ok"]
    assert [run.status for run in arm.failed] == ["diverged", "pruned", "waiting"]
