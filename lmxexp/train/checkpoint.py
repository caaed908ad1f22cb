"""Checkpoints: written whole or not at all, checked before they are read."""

import json
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from lmxexp.interfaces import ConfigError
from lmxexp.ops.trees import by_path

FORMAT = 1


class CheckpointError(ConfigError):
    """A checkpoint that cannot be read; the message says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: ``model.safetensors``, ``optimizer.safetensors`` and ``state.json``.

    ``state`` is what the trainer put there (step, random state, …) and ``files`` the size and CRC-32 of each file.
    """

    path: Path
    state: dict[str, Any]
    files: dict[str, dict[str, int]]

    @property
    def step(self) -> int:
        return self.state["step"]

    def load(self, name: str) -> dict[str, mx.array]:
        """The arrays of ``model`` or ``optimizer``, by path in the tree.

        Raises:
            CheckpointError: the file is cut short or changed.
        """
        file = self.path / f"{name}.safetensors"
        expected = self.files[file.name]
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: {_mend(self.path)}")
        size = file.stat().st_size
        if size != expected["bytes"]:
            raise CheckpointError(f"{file} has {size} of {expected['bytes']} bytes: {_mend(self.path)}")
        if _crc32(file) != expected["crc32"]:
            raise CheckpointError(f"{file} is not what was written (its CRC-32 differs): {_mend(self.path)}")
        arrays = mx.load(str(file))
        assert isinstance(arrays, dict)
        return arrays


def save(directory: Path, state: Mapping[str, Any], trees: Iterable[tuple[str, Any]]) -> Path:
    """Write ``directory/step_XXXXXXXX`` in one piece.

    Everything goes to a temporary name, is flushed to the disk, and then renamed: a reader, and a run that is killed
    at any moment, sees a whole checkpoint or none.

    Args:
        state: plain values; ``step`` is among them.
        trees: arrays to save, with the name of their file; one after the other.

    Raises:
        OSError: the disk is full, say. Earlier checkpoints stay as they are.
    """
    final = directory / f"step_{state['step']:08d}"
    temporary = directory / f".tmp-{final.name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        files = {}
        for name, tree in trees:
            file = temporary / f"{name}.safetensors"
            # Through a Python file: MLX's own writer says nothing when the disk is full.
            with open(file, "wb") as f:
                mx.save_safetensors(f, by_path(tree))
                _flush(f)
            files[file.name] = {"bytes": file.stat().st_size, "crc32": _crc32(file)}
        with open(temporary / "state.json", "w") as f:
            content = {"format": FORMAT, "files": files, "state": dict(state)}
            json.dump({**content, "crc32": _crc32_of_json(content)}, f, indent=1)
            _flush(f)
        if final.exists():
            shutil.rmtree(final)  # of the same step, by the same run: a resumed one that passes here again
        os.replace(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _flush_directory(directory)
    return final


def read(path: Path) -> Checkpoint:
    """The checkpoint in directory ``path``.

    Raises:
        CheckpointError: its ``state.json`` is missing, cut short or of another format.
    """
    try:
        content = json.loads((path / "state.json").read_text())
        if content["format"] != FORMAT:
            raise CheckpointError(f"{path} has checkpoint format {content['format']}, this version reads {FORMAT}")
        if content.pop("crc32") != _crc32_of_json(content):
            raise CheckpointError(f"{path}/state.json is not what was written (its CRC-32 differs): {_mend(path)}")
        return Checkpoint(path, content["state"], content["files"])
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path}/state.json cannot be read ({type(e).__name__}): {_mend(path)}") from e


def newest(directory: Path) -> Path | None:
    """The checkpoint of the highest step, or None."""
    paths = sorted(directory.glob("step_*"))
    return paths[-1] if paths else None


def best(directory: Path) -> Path | None:
    """The checkpoint of the lowest ``eval_loss``, the earliest of equals, or None where none was evaluated."""
    evaluated = [
        (s["eval_loss"], p) for p in sorted(directory.glob("step_*")) if (s := _state(p)).get("eval_loss") is not None
    ]
    return min(evaluated, key=lambda pair: pair[0])[1] if evaluated else None


def discard(path: Path) -> None:
    """Delete a checkpoint."""
    # Renamed first: a half-deleted checkpoint must not look like one.
    doomed = path.with_name(f".tmp-{path.name}-old")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def prune(directory: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest and the best, and what a killed run left half-written."""
    kept = {*sorted(directory.glob("step_*"))[-keep:], best(directory)}
    for path in directory.glob("step_*"):
        if path not in kept:
            discard(path)
    for path in directory.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def check_shapes(tree: Any, arrays: Mapping[str, mx.array], origin: str) -> None:
    """Raise `CheckpointError` unless ``arrays`` are those of ``tree``, by path, shape and type."""
    describe = lambda a: f"{a.dtype}{list(a.shape)}".replace("mlx.core.", "")
    want = {path: describe(a) for path, a in by_path(tree).items()}
    have = {path: describe(a) for path, a in arrays.items()}
    for path in [*want, *have]:
        if want.get(path) != have.get(path):
            raise CheckpointError(
                f"{origin} is of another run: {path} is {have.get(path, 'absent')} there and "
                f"{want.get(path, 'absent')} here; resume with the settings that the run was started with"
            )


def _state(path: Path) -> dict[str, Any]:
    try:
        return read(path).state
    except CheckpointError:
        return {}  # damaged: not a candidate for the best; whoever wants this very one is told


def _mend(path: Path) -> str:
    return f"delete {path} to go on from the checkpoint before it"


def _crc32(file: Path) -> int:
    crc = 0
    with open(file, "rb") as f:
        while chunk := f.read(1 << 22):
            crc = zlib.crc32(chunk, crc)
    return crc


def _crc32_of_json(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _flush(f: Any) -> None:
    f.flush()
    os.fsync(f.fileno())


def _flush_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
