"""Reads W&B's local files back: what is in the mirror, without a server."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BLOCK = 32768
_FILE_HEADER = 7
_CHUNK_HEADER = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class WandbFile:
    """What one ``run-ID.wandb`` holds. Nested keys are joined by dots."""

    run: dict[str, Any] = field(default_factory=dict)
    """``run_id``, ``project``, ``entity``, ``group``, ``job_type``, ``name``, ``tags``."""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    """One dict per logged step, which is ``_step``."""
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    """Name or pattern of a defined metric to its x axis."""
    exit_code: int | None = None
    """None: the run did not finish in this file."""


def read_wandb_file(path: Path) -> WandbFile:
    """Reads a transaction log, finished or not: what is complete in it counts."""
    out = WandbFile()
    for record in _records(path):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            out.history.append(_items(record.history.item))
        elif kind == "run":
            run = record.run
            out.run = {
                "run_id": run.run_id,
                "project": run.project,
                "entity": run.entity,
                "group": run.run_group,
                "job_type": run.job_type,
                "name": run.display_name,
                "tags": list(run.tags),
            }
            out.config |= _items(run.config.update)
        elif kind == "config":
            out.config |= _items(record.config.update)
        elif kind == "summary":
            out.summary |= _items(record.summary.update)
        elif kind == "metric":
            out.metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "exit":
            out.exit_code = record.exit.exit_code
    return out


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(path: Path) -> Iterator[Any]:
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    make_record = vars(wandb_internal_pb2)["Record"]  # made at import, unknown to type checkers
    for data in _payloads(path.read_bytes()):
        record = make_record()
        try:
            record.ParseFromString(data)
        except DecodeError:
            return
        yield record


def _payloads(log: bytes) -> Iterator[bytes]:
    """The framing of LevelDB's log: after the file's header, blocks of 32 KiB hold chunks of checksum, length, type and
    data. A payload is one FULL chunk, or a FIRST, any MIDDLE and a LAST one. Ends at the first chunk that is cut short
    or whose checksum is wrong: a process killed while writing leaves nothing good behind it."""
    if log[:4] != b":W&B":
        return
    at, payload = _FILE_HEADER, b""
    while at + _CHUNK_HEADER.size <= len(log):
        left = _BLOCK - at % _BLOCK
        if left < _CHUNK_HEADER.size:
            at += left
            continue
        checksum, length, kind = _CHUNK_HEADER.unpack_from(log, at)
        if length == 0 and kind == 0:
            at += left
            continue
        at += _CHUNK_HEADER.size
        data = log[at : at + length]
        if len(data) < length or zlib.crc32(bytes([kind]) + data) != checksum:
            return
        at += length
        payload = data if kind in (_FULL, _FIRST) else payload + data
        if kind in (_FULL, _LAST):
            yield payload
