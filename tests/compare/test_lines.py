import itertools
import json

import pytest

from lmxexp.compare.lines import read_lines, thinned, with_floats
from lmxexp.interfaces import ConfigError
from lmxexp.logger.jsonl import read_metrics


def write(path, lines, tail=""):
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + tail)
    return path


LINES = [
    {"step": i, "tokens": 10 * i, "train/loss": 3.0} | ({"eval/loss": 3 - i / 10} if i % 3 == 0 else {})
    for i in range(1, 10)
]


def test_all_lines_are_those_of_the_reader_of_runs(tmp_path):
    path = write(tmp_path / "metrics.jsonl", [*LINES, {"step": 10, "train/loss": "nan", "eval/loss": "-inf"}])
    found = read_lines(path)
    assert [repr(line) for line in found] == [repr(line) for line in read_metrics(path)]


def test_only_lines_with_all_the_names(tmp_path):
    path = write(tmp_path / "metrics.jsonl", LINES)
    assert [line["step"] for line in read_lines(path, ("eval/loss",))] == [3, 6, 9]
    assert read_lines(path, ("eval/loss", "tokens")) == [LINES[2], LINES[5], LINES[8]]
    assert read_lines(path, ("tokens", "eval/loss")) == [LINES[2], LINES[5], LINES[8]]
    assert read_lines(path, ("train/loss", "eval/loss"), at_most=2) == [LINES[2], LINES[8]]
    assert read_lines(path, ("eval/los",)) == []
    assert read_lines(path, ("eval/loss", "eval/bpb")) == []


def test_a_line_cut_short_is_left_out(tmp_path):
    path = write(tmp_path / "metrics.jsonl", LINES, tail='{"step": 11, "eval/loss": 2.')
    assert len(read_lines(path)) == len(LINES)


def test_a_missing_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("bad", ["{", "[1]", '{"tokens": 3}', '"x"', '{"step": 1}, {"step": 2}'])
def test_a_damaged_line_is_named(tmp_path, bad):
    path = write(tmp_path / "metrics.jsonl", LINES, tail=f"{bad}\n")
    with pytest.raises(ConfigError, match=r"metrics.jsonl is damaged: b'.*' is no JSON object with a step"):
        read_lines(path)


@pytest.mark.parametrize(("n", "at_most"), [(10, 3), (2000, 256), (5, 5), (4, 9), (9, 2), (7, None)])
def test_thinning_is_even_and_keeps_the_ends(n, at_most):
    kept = thinned(list(range(n)), at_most)
    assert len(kept) == min(n, at_most or n)
    assert (kept[0], kept[-1]) == (0, n - 1)
    gaps = {b - a for a, b in itertools.pairwise(kept)}
    assert max(gaps) - min(gaps) <= 1
    assert thinned([1, 2, 3], 1) == [3]


def test_texts_that_are_no_numbers_stay():
    assert repr(with_floats({"a": "nan", "b": "inf", "c": "ok", "d": None})) == repr(
        {"a": float("nan"), "b": float("inf"), "c": "ok", "d": None}
    )
