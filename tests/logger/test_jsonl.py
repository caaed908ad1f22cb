from __future__ import annotations

import errno
import json
import math
import os
import random
import struct

import numpy as np
import pytest

from lmxexp.interfaces import ConfigError
from lmxexp.logger.jsonl import Jsonl, read_metrics


def _write(info, rows):
    logger = Jsonl()
    logger.start(info)
    for step, metrics in rows:
        logger.log(metrics, step=step)
    logger.finish("ok", {})


def test_floats_keep_their_bits(make_info):
    info = make_info()
    draw = random.Random(0)
    floats = [struct.unpack("<d", draw.randbytes(8))[0] for _ in range(2000)]
    floats += [0.1, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan, float(np.float32(0.1))]
    _write(info, [(i, {"tokens": i, "x": value}) for i, value in enumerate(floats)])
    read = [row["x"] for row in read_metrics(info.run_dir / "metrics.jsonl")]
    pack = lambda values: [struct.pack("<d", v) if not math.isnan(v) else b"nan" for v in values]
    assert pack(read) == pack(floats)


def test_every_line_is_json_that_any_reader_takes(make_info):
    info = make_info()
    _write(info, [(1, {"tokens": 7, "a": math.nan, "b": -math.inf, "c": np.float32(0.5)})])

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads((info.run_dir / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {"step": 1, "tokens": 7, "a": "nan", "b": "-inf", "c": 0.5}


def test_a_line_is_in_the_file_when_log_returns(make_info):
    info = make_info()
    logger = Jsonl()
    logger.start(info)
    for step in range(3):
        logger.log({"tokens": step}, step=step)
        assert len(read_metrics(info.run_dir / "metrics.jsonl")) == step + 1


def test_resuming_drops_what_came_after_and_nothing_else(make_info):
    info = make_info()
    rows = [(step, {"tokens": step, "x": 1 / (step + 3)}) for step in range(10, 101, 10)]
    _write(info, rows)
    path = info.run_dir / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 110, "tok')

    _write(make_info(resume_step=60), [(step, metrics) for step, metrics in rows if step > 60])
    assert path.read_bytes() == whole
    assert [p.name for p in info.run_dir.iterdir()] == ["metrics.jsonl"]


def test_resuming_where_the_file_ends_leaves_it_alone(make_info):
    info = make_info()
    _write(info, [(10, {"tokens": 1})])
    path = info.run_dir / "metrics.jsonl"
    before = path.stat()
    _write(make_info(resume_step=15), [])
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_run_killed_before_its_first_checkpoint_starts_over(make_info):
    _write(make_info(), [(0, {"tokens": 0}), (1, {"tokens": 1})])
    info = make_info(resume_step=0, config={"resume": "the directory"})
    _write(info, [(1, {"tokens": 1})])
    assert [row["step"] for row in read_metrics(info.run_dir / "metrics.jsonl")] == [0, 1]


def test_a_new_run_does_not_write_into_another_runs_file(make_info):
    info = make_info()
    _write(info, [(1, {"tokens": 1})])
    with pytest.raises(ConfigError, match=r"hydra.run.dir=.* holds the metrics.jsonl of another run.*resume="):
        Jsonl().start(info)
    assert len(read_metrics(info.run_dir / "metrics.jsonl")) == 1


def test_reading_leaves_out_a_torn_last_line_only(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "x": 2.0}\n{"step": 2, "x": 3')
    assert read_metrics(path) == [{"step": 1, "x": 2.0}]
    # Whole, but for the end of the line: the next line would be glued to it.
    path.write_bytes(b'{"step": 1, "x": 2.0}\n{"step": 2, "x": 3.0}')
    assert read_metrics(path) == [{"step": 1, "x": 2.0}]
    path.write_bytes(b'{"step": 1}\n{"step": 2, "x\n{"step": 3}\n')
    with pytest.raises(ConfigError, match="line 2"):
        read_metrics(path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_says_what_to_do(make_info):
    info = make_info()
    (info.run_dir / "metrics.jsonl").symlink_to("/dev/full")
    logger = Jsonl()
    logger.start(info)
    with pytest.raises(OSError, match=r"metrics.jsonl.*free space and go on with resume=") as caught:
        logger.log({"tokens": 1.0}, step=1)
    assert caught.value.errno == errno.ENOSPC
    logger.finish("failed", {})


def test_a_disk_that_fills_up_while_cutting_loses_no_line(make_info, monkeypatch):
    info = make_info()
    _write(info, [(step, {"tokens": step}) for step in range(5)])
    path = info.run_dir / "metrics.jsonl"
    before = path.read_bytes()

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="free space"):
        Jsonl().start(make_info(resume_step=2))
    assert path.read_bytes() == before
