"""The plan of a sweep: names, what is one point, all mistakes at once, equal budgets, tuned arms."""

import copy
import json
from typing import Any

import mlx.core as mx
import pytest
from omegaconf import OmegaConf

from lmxexp.data.build import build_source
from lmxexp.identity import identity
from lmxexp.interfaces import ConfigError
from lmxexp.model.build import build_model
from lmxexp.run import run
from lmxexp.sweep import match
from tests.end_to_end.processes import small
from tests.sweep.planning import sweep


@pytest.fixture(scope="module")
def hydra(tmp_path_factory):
    """Hydra, started once; a place for the data."""
    place = tmp_path_factory.mktemp("data")
    with sweep(place / "s") as ready:
        yield ready, place


@pytest.fixture
def plan(hydra, tmp_path):
    """``plan("attention=mha,mqa")``: the points of a sweep of small models, in an empty directory."""
    ready, place = hydra
    ready.directory = tmp_path / "s"
    basis = [o for o in small(place) if not o.startswith("model.n_kv_heads=")]  # which not all mixers have
    return lambda *typed: ready.plan(*basis, *typed)


def entries(points):
    return [(p.entry.num, p.entry.dir, p.entry.overrides) for p in points]


def refused(call) -> list[str]:
    with pytest.raises(ConfigError) as error:
        call()
    return [line.strip() for line in str(error.value).splitlines() if "settings cannot work:" not in line]


# Names


def test_a_point_goes_by_what_distinguishes_it(plan, hydra):
    points = plan("attention=mha,mqa", "seed=1,2", "train.steps=5")
    assert entries(points) == [
        (0, "0_attention=mha,seed=1", ["attention=mha", "seed=1"]),
        (1, "1_attention=mha,seed=2", ["attention=mha", "seed=2"]),
        (2, "2_attention=mqa,seed=1", ["attention=mqa", "seed=1"]),
        (3, "3_attention=mqa,seed=2", ["attention=mqa", "seed=2"]),
    ]
    assert [p.cfg.name for p in points] == [" ".join(p.entry.overrides) for p in points]
    for point in points:
        node = point.cfg.sweep
        assert (node.name, node.mode, node.overrides) == ("s", "grid", point.entry.overrides)
        assert (node.identity, node.until, node.on_failure) == (point.entry.identity, None, "continue")
        assert (point.steps, "train.steps=5" in point.line) == (5, True)
    assert [p.cfg.choice.attention for p in points] == ["mha", "mha", "mqa", "mqa"]
    content = json.loads((hydra[0].directory / "sweep.json").read_text())
    assert [e["identity"] for e in content["points"]] == [p.entry.identity for p in points]
    assert content["match"] is content["tune"] is None


def test_a_single_point_goes_by_all_that_was_said(plan):
    [point] = plan("seed=3")
    assert point.entry.overrides[-1] == "seed=3"
    assert "train.steps=12" in point.entry.overrides


def test_a_launcher_gets_all_of_it_and_changes_nothing(plan):
    point = plan("seed=1,2")[0]
    before = OmegaConf.to_yaml(point.cfg), OmegaConf.to_yaml(point.hydra)
    whole = point.whole(until=7)
    assert whole.sweep.until == 7
    assert whole.hydra.overrides.task[-1] == "seed=1"
    whole.hydra.job.num, whole.train.steps = 17, 99
    assert (OmegaConf.to_yaml(point.cfg), OmegaConf.to_yaml(point.hydra)) == before
    assert point.whole().sweep.until is None


def test_a_planned_point_runs_under_its_identity(plan, tmp_path):
    """What the plan says a run is, the run says of itself."""
    [point] = plan("train.steps=2")
    run(point.cfg, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["identity"] == point.entry.identity


# What is one point, and which are there already


def test_lines_that_come_to_the_same_run_are_one_point(plan):
    points = plan("attention=mqa,mha,mqa", "tags=[a],[b]", "seed=1,1")
    assert entries(points) == [
        (0, "0_attention=mqa,tags=[a]", ["attention=mqa", "tags=[a]"]),
        (1, "1_attention=mha,tags=[a]", ["attention=mha", "tags=[a]"]),
    ]


def test_a_default_that_is_spelled_out_is_the_same_point(plan):
    [one] = plan("seed=1")
    [same] = plan("seed=1", "optim=adamw", "tags=[x]")
    assert same.entry == one.entry


def test_a_command_that_is_given_again_finds_its_points_whatever_their_order(plan, hydra):
    first = {p.entry.identity: p.entry for p in plan("attention=mha,mqa", "seed=1,2")}
    again = plan("seed=2,1,3", "attention=mqa,mha")
    assert [p.entry.num for p in again] == [3, 1, 2, 0, 4, 5]
    assert all(first[p.entry.identity] == p.entry for p in again[:4])
    assert entries(again[4:]) == [
        (4, "4_seed=3,attention=mqa", ["seed=3", "attention=mqa"]),
        (5, "5_seed=3,attention=mha", ["seed=3", "attention=mha"]),
    ]
    assert again[0].cfg.sweep.overrides == ["seed=2", "attention=mqa"]
    assert [e.num for e in hydra[0].planner()[1].entries] == [0, 1, 2, 3, 4, 5], "none is lost"


# Mistakes


def test_all_mistakes_of_all_points_are_told_at_once(plan, hydra):
    problems = refused(lambda: plan("attention=mqa,gated,mha", "model.d_model=32,33", "+optim.nonesuch=1", "seed=1,x"))
    assert len(problems) == len(set(problems))
    [shared] = [p for p in problems if "nonesuch" in p]
    assert "point" not in shared, "what all have in common is told once, of none of them"
    [seeds] = [p for p in problems if "seed=x" in p.partition(": ")[2]]
    assert seeds.startswith("model.d_model=32 attention=mqa seed=x and 5 more points: seed=x")
    assert not hydra[0].directory.exists()


def test_mistakes_that_only_building_shows_are_told_with_their_points(plan, hydra):
    problems = refused(lambda: plan("attention=mqa", "model.n_heads=2,3", "seed=1,2"))
    assert len(problems) == 1
    assert problems[0].startswith("model.n_heads=3 seed=1 and 1 more point: ")
    assert "n_heads=3" in problems[0].partition(": ")[2]
    assert not hydra[0].directory.exists()


def test_what_no_data_is_to_be_had_for(plan, tmp_path):
    [problem] = refused(lambda: plan(f"data.path={tmp_path}/nowhere.txt", "seed=1,2"))
    assert "nowhere.txt" in problem
    assert "seed" not in problem


def test_an_unknown_answer_to_failure(plan):
    [problem] = refused(lambda: plan("sweep.on_failure=maybe", "seed=1,2"))
    assert problem == "sweep.on_failure=maybe: expected one of continue, stop"


# Equal budgets

MATCHED = ("match=params", "match.reference='attention=mha'", "match.tolerance=0.05")


def n_params(point) -> int:
    return build_model(point.cfg, vocab_size=build_source(copy.deepcopy(point.cfg)).vocab_size).n_params()


def test_matched_arms_have_what_was_solved_for(plan):
    points = plan("attention=mha,mqa", "seed=1,2", *MATCHED)
    reference, _, arm, twin = points
    assert reference.entry.adjusted == {}
    assert arm.entry.adjusted == twin.entry.adjusted
    assert arm.cfg.model.d_ff == arm.entry.adjusted["model.d_ff"]
    for point in points:
        assert point.entry.budget is not None
        assert n_params(point) == point.entry.budget["value"]
        assert point.entry.budget["target"] == n_params(reference)
        assert point.entry.budget["residual"] == point.entry.budget["value"] / n_params(reference) - 1
    # The identity is that of what runs, with the solution in it; the same run asked for by hand is the same point.
    config: Any = OmegaConf.to_container(arm.cfg, resolve=True)
    assert arm.entry.identity == identity(config, build_source(copy.deepcopy(arm.cfg)).fingerprint)
    [by_hand] = plan("attention=mqa", "seed=1", f"model.d_ff={arm.cfg.model.d_ff}")
    assert by_hand.entry == arm.entry


@pytest.fixture
def solving(monkeypatch):
    """The lines of the arms that were solved for."""
    lines, solve = [], match.solve
    monkeypatch.setattr(
        match,
        "solve",
        lambda m, candidates, c: lines.extend(c.overrides for c in candidates) or solve(m, candidates, c),
    )
    return lines


def test_what_is_solved_is_not_solved_again(plan, solving, hydra):
    first = plan("attention=mha,mqa", *MATCHED)
    assert len(solving) == 2
    solving.clear()
    assert [p.entry for p in plan("attention=mha,mqa", *MATCHED)] == [p.entry for p in first]
    assert not solving
    # A larger sweep is matched to the same reference, which is not among what is new.
    more = plan("attention=mha,mqa,gated", *MATCHED)
    assert [line[-4] for line in solving] == ["attention=gated"]
    assert [p.entry for p in more[:2]] == [p.entry for p in first]
    assert more[2].entry.budget["target"] == first[0].entry.budget["value"]
    facts = json.loads((hydra[0].directory / "sweep.json").read_text())
    assert facts["match"] == {"kind": "params", "reference": ["attention=mha"], "adjust": "d_ff", "tolerance": 0.05}


def test_another_budget_is_solved_anew(plan, solving):
    by_params = plan("attention=mha,mqa", *MATCHED)[1]
    by_flops = plan("attention=mha,mqa", "match=flops", "match.reference='attention=mha'", "match.tolerance=0.1")[1]
    assert "train.steps" in by_flops.entry.adjusted or by_flops.entry.adjusted == {}
    assert by_flops.entry.budget["kind"] == "flops"
    assert by_flops.entry.identity != by_params.entry.identity
    alone = plan("attention=mha,mqa")[1]
    assert (alone.entry.adjusted, alone.entry.budget) == ({}, None)
    assert len({p.entry.num for p in (by_params, by_flops, alone)}) == 3


def test_the_first_point_is_the_reference_of_a_sweep_that_grew(plan):
    by_itself = ("match=params", "match.tolerance=0.05")
    first = plan("attention=mha,mqa", *by_itself)
    more = plan("attention=mha,mqa,gated", *by_itself)
    assert more[2].entry.budget["target"] == first[0].entry.budget["value"]
    assert more[2].entry.adjusted
    assert abs(more[2].entry.budget["residual"]) < 0.05


# Tuned arms


def test_every_arm_is_tried_at_every_value(plan, hydra):
    points = plan("attention=mha,mqa", "tune=optim.learning_rate", "tune.values=[0.01,0.001]")
    assert [p.entry.overrides for p in points] == [
        [f"attention={kind}", f"optim.learning_rate={lr}"] for kind in ("mha", "mqa") for lr in (0.001, 0.01)
    ]
    assert [p.cfg.optim.learning_rate for p in points] == [0.001, 0.01] * 2
    facts = json.loads((hydra[0].directory / "sweep.json").read_text())
    assert facts["tune"] == {"key": "optim.learning_rate", "values": [0.001, 0.01]}


def test_a_learning_rate_that_is_not_tuned_is_told_of_once(plan, capsys):
    plan("optim=adamw,muon", "seed=1,2", "tune=optim.learning_rate", "tune.values=[0.01,0.001]")
    err = capsys.readouterr().err
    assert err.count("note:") == 1
    assert "tune.key=optim.learning_rate does not move that of optim=muon: optim.adamw.learning_rate=0.001" in err
    plan("optim=adamw,muon_moonlight", "tune=optim.learning_rate", "tune.values=[0.01,0.001]")
    assert capsys.readouterr().err == ""


def test_a_mistake_that_all_tuned_points_share_is_told_once(plan):
    problems = refused(lambda: plan("tune=optim.learning_rate", "tune.trials=3", "model.n_heads=3"))
    assert len(problems) == 1
    assert "more point" not in problems[0]


def test_a_plan_makes_no_weights_and_draws_no_numbers(plan):
    mx.random.seed(3)
    drawn = mx.random.uniform().item()
    mx.random.seed(3)
    mx.reset_peak_memory()
    plan("attention=mha,mqa", "model.d_model=1024", "model.n_layers=64")  # 3 GB of weights
    assert mx.random.uniform().item() == drawn
    assert mx.get_peak_memory() < 1e8
