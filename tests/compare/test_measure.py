import statistics

import pytest

from lmxexp.compare.measure import higher_is_better, value
from lmxexp.compare.read import find_runs
from tests.compare.made_runs import make_run


@pytest.mark.parametrize(
    ("metric", "higher"),
    [("eval/loss", False), ("eval/bpb", False), ("eval/accuracy", True), ("perf/tokens_per_s", True),
     ("perf/mfu", True), ("perf/step_ms", False), ("mem/peak_gb", False), ("eval/own", False),
     ("eval/copying_accuracy", True), ("speed/train_tokens_per_s/512", True), ("speed/decode_tokens_per_s/64", True),
     ("speed/train_peak_gb/512", False), ("speed/state_bytes/64", False)],
)  # fmt: skip
def test_direction(metric, higher):
    assert higher_is_better(metric) == higher


def test_values(tmp_path):
    path = make_run(tmp_path / "a", loss=2.5, tokens_per_s=1000.0)
    lines = (path / "metrics.jsonl").read_text().replace('"perf/mfu": 0.3', '"perf/mfu": 0.9', 3)
    (path / "metrics.jsonl").write_text(lines)
    (run,) = find_runs([path])
    assert value(run, "eval/loss") == 2.5
    assert value(run, "perf/tokens_per_s") == 1000
    assert value(run, "perf/mfu") == statistics.median([line["perf/mfu"] for line in run.metrics()]) == 0.3
    assert value(run, "train/grad_norm") == 1.0  # in no summary: the last that was logged
    assert value(run, "eval/own") is None
