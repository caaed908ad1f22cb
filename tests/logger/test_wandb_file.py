from __future__ import annotations

import json
import struct
import zlib

import pytest

from lmxexp.logger.wandb_file import read_wandb_file


def _history(step, size=10):
    from wandb.proto import wandb_internal_pb2

    record = vars(wandb_internal_pb2)["Record"]()
    for key, value in (("_step", step), ("x", "y" * size)):
        record.history.item.add(nested_key=["a", key] if key == "x" else [key], value_json=json.dumps(value))
    return record.SerializeToString()


def _frame(payloads):
    """Writes what the reader reads: written apart from it, after the description of LevelDB's log format."""
    out = bytearray(b":W&B\xe1\xbe\x00")
    for payload in payloads:
        rest, first = payload, True
        while rest or first:
            room = 32768 - len(out) % 32768
            if room < 7:
                out += bytes(room)
                continue
            part, rest = rest[: room - 7], rest[room - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[first, not rest]
            out += struct.pack("<IHB", zlib.crc32(bytes([kind]) + part), len(part), kind) + part
            first = False
    return bytes(out)


@pytest.fixture(scope="module")
def log():
    """Records of all sizes, so that some fill blocks exactly, some leave a few bytes and some span several."""
    payloads = [_history(step, size) for step, size in enumerate([10, 40_000, 100_000, 5, *range(3000, 3040)])]
    filler = 32768 - len(_frame(payloads)) % 32768
    payloads.append(_history(len(payloads), filler - 60))
    payloads += [_history(step, 20) for step in range(len(payloads), len(payloads) + 40)]
    return _frame(payloads)


def test_reads_what_was_written(log, tmp_path):
    path = tmp_path / "run-x.wandb"
    path.write_bytes(log)
    rows = read_wandb_file(path).history
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    assert len(rows) == 85
    assert len(rows[2]["a.x"]) == 100_000


def test_of_a_torn_file_the_complete_records_count(log, tmp_path):
    path = tmp_path / "run-x.wandb"
    seen = set()
    for size in [0, 3, 7, 9, *range(30, len(log), 7919), len(log) - 1]:
        path.write_bytes(log[:size])
        steps = [row["_step"] for row in read_wandb_file(path).history]
        assert steps == list(range(len(steps)))
        seen.add(len(steps))
        # Space that the file system gave and the process did not fill.
        path.write_bytes(log[:size] + bytes(500))
        assert [row["_step"] for row in read_wandb_file(path).history] == steps
    assert len(seen) > 10
    assert max(seen) == 84


def test_a_damaged_record_ends_the_file(log, tmp_path):
    path = tmp_path / "run-x.wandb"
    damaged = bytearray(log)
    damaged[60_000] ^= 1
    path.write_bytes(bytes(damaged))
    assert [row["_step"] for row in read_wandb_file(path).history] == [0, 1]


def test_a_foreign_file_holds_nothing(tmp_path):
    path = tmp_path / "run-x.wandb"
    path.write_bytes(b"hello, world" * 100)
    assert read_wandb_file(path).history == []
