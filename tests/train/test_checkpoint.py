"""Checkpoints on disk: whole or absent, and refused when damaged."""

import errno
import os

import mlx.core as mx
import pytest

from lmxexp.train import checkpoint

TREES = {
    "model": {"a": {"w": mx.arange(6.0).reshape(2, 3)}, "b": mx.ones((2,), mx.bfloat16)},
    "optimizer": {"step": mx.array(3)},
}


def save(directory, step, eval_loss=None):
    return checkpoint.save(directory, {"step": step, "eval_loss": eval_loss}, TREES.items())


def test_round_trip(tmp_path):
    read = checkpoint.read(save(tmp_path, 7))
    assert read.step == 7
    arrays = read.load("model")
    assert arrays["b"].dtype == mx.bfloat16
    assert mx.array_equal(arrays["a.w"], TREES["model"]["a"]["w"]).item()
    checkpoint.check_shapes(TREES["model"], arrays, "here")


def test_keeps_the_newest_and_the_best(tmp_path):
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 1.5)):
        save(tmp_path, step, loss)
        checkpoint.prune(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000002", "step_00000004", "step_00000005"]
    assert checkpoint.best(tmp_path).name == "step_00000002"
    assert checkpoint.newest(tmp_path).name == "step_00000005"


def test_saving_the_same_step_again(tmp_path):
    save(tmp_path, 1, 2.0)
    save(tmp_path, 1, 1.0)
    assert checkpoint.read(tmp_path / "step_00000001").state["eval_loss"] == 1.0


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "delete"])
def test_damage_is_found(tmp_path, file, damage):
    path = save(tmp_path, 1)
    target = path / file
    content = bytearray(target.read_bytes())
    if damage == "delete":
        target.unlink()
    elif damage == "cut":
        target.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0xFF
        target.write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match=r"step_00000001.*(bytes|differs|missing|cannot be read)"):
        [checkpoint.read(path).load(name) for name in ("model", "optimizer")]


def test_full_disk_leaves_the_earlier_checkpoints(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    checkpoint.read(tmp_path / "step_00000001").load("model")


def test_another_models_arrays_are_refused(tmp_path):
    arrays = checkpoint.read(save(tmp_path, 1)).load("model")
    with pytest.raises(checkpoint.CheckpointError, match=r"a\.w is float32\[2, 3\] there and float32\[2, 4\] here"):
        checkpoint.check_shapes({"a": {"w": mx.zeros((2, 4))}, "b": TREES["model"]["b"]}, arrays, "file")
