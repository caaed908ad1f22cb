"""``python -m lmxexp.bench`` as one types it."""

import json

import pytest

from lmxexp.bench import report
from lmxexp.bench.__main__ import main
from tests.bench.small import SIZES
from tests.end_to_end.processes import lmxexp


def test_command(tmp_path):
    options = ["--size", "tiny", "--rounds", "1", "--steps", "1", "--peers", "none", "--batch-size", "2"]
    done = lmxexp(*options, *SIZES, cwd=tmp_path, module="lmxexp.bench")
    assert done.returncode == 0, done.stderr
    (data,) = (tmp_path / "outputs/bench").glob("*.json")
    (text,) = (tmp_path / "outputs/bench").glob("*.md")
    assert data.stem == text.stem
    found = report.load(data)
    assert found.rows[0].step_s.median > 0
    assert found.command.startswith("python -m lmxexp.bench --size tiny")
    assert report.markdown(found) == text.read_text(encoding="utf-8")
    for word in ("lmxexp", "tokens/s", "MFU", "GFLOP/s", text.name):
        assert word in done.stdout
    everything = json.dumps(found.to_json())
    assert str(tmp_path) not in everything


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rounds", "0"], "--rounds=0 must be at least 1"),
        (["--steps", "-1"], "--steps=-1 must be at least 1"),
        (["--peers", "troch"], "--peers=troch must be one of torch, mlx_lm, lmxlab, none; did you mean torch?"),
        (["--optim", "sgdd"], "did you mean sgd"),
        (["--peers", "none", "train.steps=3"], "train.steps=3: the training step alone is measured"),
        (["--size", "tiny", "size=10m"], "--size and the override model/size both say it"),
    ],
)
def test_bad_arguments(args, message, capsys):
    assert main(args) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert not printed.out


def test_nothing_measured_is_a_failure(tmp_path, capsys):
    small = ["--peers", "none", "--rounds", "1", "--steps", "1", "--out", str(tmp_path)]
    assert main([*small, "model.n_heads=3"]) == 1
    assert "must be a multiple of" in capsys.readouterr().out
    assert list(tmp_path.glob("*.md"))
