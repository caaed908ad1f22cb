"""What is in the view: compared, key by key, with what a real run leaves."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from lmxexp import compose, run
from lmxexp.dashboard import view
from lmxexp.dashboard.contents import Contents, Varied, read
from lmxexp.logger.wandb_file import WandbFile, read_wandb_file

pytest.importorskip("wandb_workspaces", reason="pip install 'lmxexp[dashboard]'")

ATTENTION = Varied("choices.attention", "attention", grouped=True, log=False)
RATE = Varied("optim.learning_rate", "optim.learning_rate", grouped=True, log=True)
SEED = Varied("seed", "seed", grouped=False, log=False)


def _contents(*varied: Varied, name: str = "shapes", groups: tuple[str, ...] | None = None, n: int = 6) -> Contents:
    return Contents(name, "proj", None, [*(groups or (name,))], [*varied], n)


def _spec(contents: Contents) -> dict[str, Any]:
    return view.build(contents)._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True)["section"]


def _panels(spec: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    sections = spec["panelBankConfig"]["sections"]
    return [panel["config"] for section in sections for panel in section["panels"] if panel["viewType"] == kind]


LINES, SCATTERS, PARALLEL = "Run History Line Plot", "Scatter Plot", "Parallel Coordinates Plot"


def test_curves_have_a_line_for_each_choice_and_a_band_over_its_seeds():
    spec = _spec(_contents(ATTENTION, SEED))
    lines = _panels(spec, LINES)
    assert {metric for line in lines for metric in line["metrics"]} == {
        "eval/loss",
        "train/loss",
        "perf/tokens_per_s",
        "mem/peak_gb",
    }
    for line in lines:
        assert line["xAxis"] == "tokens"
        assert line["groupBy"] == "choices.value.attention"
        assert (line["groupAgg"], line["groupArea"], line["aggregate"]) == ("mean", "minmax", True)
        assert line["chartTitle"] == f"{line['metrics'][0]} by attention"
    assert spec["runSets"][0]["grouping"] == [{"section": "config", "name": "choices.value.attention"}]


def test_several_settings_group_the_runs_and_each_has_a_panel_of_its_own():
    spec = _spec(_contents(ATTENTION, RATE, SEED))
    lines = [line for line in _panels(spec, LINES) if line["metrics"] == ["eval/loss"]]
    assert [(line["chartTitle"], line.get("groupBy")) for line in lines] == [
        ("eval/loss by attention optim.learning_rate", None),
        ("eval/loss by attention", "choices.value.attention"),
        ("eval/loss by optim.learning_rate", "optim.value.learning_rate"),
    ]
    assert all(line["groupArea"] == "minmax" for line in lines)
    assert [key["name"] for key in spec["runSets"][0]["grouping"]] == [
        "choices.value.attention",
        "optim.value.learning_rate",
    ]
    assert spec["settings"]["useRunsTableGroupingInPanels"] is True


def test_seeds_alone_are_one_line_with_a_band():
    spec = _spec(_contents(SEED))
    assert spec["runSets"][0]["grouping"] == [{"section": "run", "name": "group"}]
    assert {line["groupBy"] for line in _panels(spec, LINES)} == {"group"}


def test_without_anything_to_group_by_each_run_is_a_line():
    rate = Varied("optim.learning_rate", "optim.learning_rate", grouped=False, log=True)
    spec = _spec(_contents(rate))
    assert spec["runSets"][0]["grouping"] == []
    assert all("groupBy" not in line and "groupArea" not in line for line in _panels(spec, LINES))


def test_loss_against_speed_memory_and_size():
    assert [(s["xAxis"], s["yAxis"]) for s in _panels(_spec(_contents(ATTENTION)), SCATTERS)] == [
        ("summary:summary/perf/tokens_per_s", "summary:summary/eval/loss"),
        ("summary:summary/mem/peak_gb", "summary:summary/eval/loss"),
        ("summary:summary/params", "summary:summary/eval/loss"),
    ]


def test_parallel_coordinates_go_from_the_settings_to_the_loss():
    (plot,) = _panels(_spec(_contents(ATTENTION, RATE, SEED)), PARALLEL)
    assert [(c["accessor"], c["displayName"], c.get("log")) for c in plot["columns"]] == [
        ("config:choices.value.attention", "attention", None),
        ("config:optim.value.learning_rate", "optim.learning_rate", True),
        ("config:seed.value", "seed", None),
        ("summary:summary/perf/tokens_per_s", "perf/tokens_per_s", None),
        ("summary:summary/mem/peak_gb", "mem/peak_gb", None),
        ("summary:summary/eval/loss", "eval/loss", None),
    ]


def _filters(contents: Contents) -> list[tuple[str, str, Any]]:
    filters = _spec(contents)["runSets"][0]["filters"]["filters"]
    assert [f.get("connector") for f in filters] == [None, "AND"]
    assert not any(f["disabled"] for f in filters)
    return [(f["key"]["name"], f["op"], f["value"]) for f in filters]


@pytest.mark.parametrize(
    "name", ["shapes", "attention=mha,gqa", "it's", 'a"b', "a\\nb", "x<y", "lr>=3", "größe 🙂", "{a} [b] 'c'", "C = D"]
)
def test_the_runs_are_those_of_the_sweep(name):
    contents = _contents(ATTENTION, name=name)
    assert _filters(contents) == [("group", "=", name), ("jobType", "!=", "comparison")]


def test_runs_of_several_groups():
    contents = _contents(ATTENTION, groups=("one", "t=wo"))
    assert _filters(contents) == [("group", "IN", ["one", "t=wo"]), ("jobType", "!=", "comparison")]


@pytest.mark.parametrize(("n", "limit"), [(3, 10), (60, 60), (5000, 1000)])
def test_all_points_are_shown(n, limit):
    spec = _spec(_contents(ATTENTION, n=n))
    assert spec["settings"]["maxRuns"] == limit
    assert {line["limit"] for line in _panels(spec, LINES)} == {limit}


def test_the_best_come_first():
    (keys,) = [run_set["sort"]["keys"] for run_set in _spec(_contents(ATTENTION))["runSets"]]
    assert keys == [{"key": {"section": "summary", "name": "summary/eval/loss"}, "ascending": True}]


# --- against a real run -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> WandbFile:
    folder: Path = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("HOME", str(folder))
        words = ["debug=default", "callback=[evaluate,throughput,memory]", "logger=[jsonl,wandb]"]
        result = run(compose([*words, "logger.wandb.mode=offline", "attention=mqa", "model.d_ff=300"]), folder / "run")
        import wandb

        wandb.teardown()  # a run's file is complete a moment after finish; this waits for it
    (path,) = result.run_dir.glob("wandb/*run-*/*.wandb")
    return read_wandb_file(path)


def _at(config: dict[str, Any], key: str) -> Any:
    """What W&B finds under ``choices.value.attention``: the top key, ``value``, and the way further down."""
    top, value, *rest = key.split(".")
    assert value == "value"
    node = config[top]
    for part in rest:
        node = node[part]
    return node


def test_a_real_run_has_every_key_that_the_view_speaks_of(real, make_sweep):
    rates = ("optim.learning_rate=0.001", "optim.learning_rate=0.01")
    points = itertools.product(("attention=mha", "attention=mqa"), rates, ("seed=1", "seed=2"))
    sweep = make_sweep([" ".join(words) for words in points], adjusted=[{"model.d_ff": 300}, {"model.d_ff": 400}])
    spec = _spec(read(sweep))

    logged = {key for row in real.history for key in row}
    for line in _panels(spec, LINES):
        assert {line["xAxis"], *line["metrics"]} <= logged
        if "groupBy" in line:
            assert _at(real.config, line["groupBy"]) in ("mqa", real.config["optim"]["learning_rate"])
    for scatter in _panels(spec, SCATTERS):
        for axis in ("xAxis", "yAxis"):
            assert isinstance(real.summary[scatter[axis].removeprefix("summary:")], int | float)
    (plot,) = _panels(spec, PARALLEL)
    values = {}
    for column in plot["columns"]:
        section, _, key = column["accessor"].partition(":")
        values[column["displayName"]] = _at(real.config, key) if section == "config" else real.summary[key]
    assert list(values)[:4] == ["attention", "optim.learning_rate", "seed", "model.d_ff"]
    assert values["attention"] == "mqa"
    assert values["optim.learning_rate"] == real.config["optim"]["learning_rate"]
    assert values["model.d_ff"] == 300
    assert values["eval/loss"] == real.summary["summary/eval/loss"]
    for key in spec["runSets"][0]["grouping"]:
        _at(real.config, key["name"])
    columns = spec["runSets"][0]["runFeed"]["columnOrder"]
    assert {c.removeprefix("summary:") for c in columns if c != "run:displayName"} <= real.summary.keys()
