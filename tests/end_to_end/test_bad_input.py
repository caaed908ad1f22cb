"""What goes wrong for a user is said in one message: key, value, mend; no traceback, nothing lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmxexp import compose, run
from tests.end_to_end.processes import assert_same_run, lmxexp, small


def fails(cwd: Path, *args: str, says: str | tuple[str, ...]) -> subprocess.CompletedProcess:
    done = lmxexp(*args, cwd=cwd)
    text = done.stdout + done.stderr
    assert done.returncode not in (0, -11), text
    assert "Traceback" not in text
    for words in (says,) if isinstance(says, str) else says:
        assert words in text, text
    return done


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("attention=gqq", ("gqq", "gqa")),
        ("atention=gqa", ("atention", "attention")),
        ("train.step=5", ("train.step", "train.steps")),
        ("model.n_heads=abc", ("model.n_heads", "abc", "int")),
        ("model.n_heads=3", ("model.n_heads=3", "multiple")),
        ("model.d_model=30 model.n_heads=4", ("model.d_model=30", "multiple")),
        ("model.head_dim=15", ("head_dim=15", "even")),
        ("model.n_layers=0", ("model.n_layers=0", "at least 1")),
        ("model.dropout=1.0", ("model.dropout=1.0", "[0, 1)")),
        ("attention=sliding attention.reach.window=0", ("window=0", "at least 1")),
        ("attention=mha model.n_kv_heads=1", ("n_kv_heads",)),
        ("norm=none norm.eps=1", ("norm.eps",)),
        ("train.n_micro=3", ("train.batch_size=4", "train.n_micro=3")),
        ("train.steps=0", ("train.steps=0", "at least 1")),
        ("train.precision=fp8", ("train.precision", "fp8")),
        ("optim.learning_rate=0", ("optim.learning_rate=0",)),
        ("optim.betas=[0.9,1.0]", ("betas",)),
        ("schedule.warmup_steps=12", ("warmup_steps=12",)),
        ("data.path=nothing.txt", ("data.path=nothing.txt",)),
        ("tokenizer=pretrained", ("tokenizer.path",)),
        ("model.net.pattern.repeat=[lyer]", ("lyer", "layer")),
    ],
)
def test_settings(override, says, tmp_path):
    overrides = [o for o in small(tmp_path) if o.split("=")[0] not in {part.split("=")[0] for part in override.split()}]
    if "n_kv_heads" in override or "norm=none" in override:
        overrides = [o for o in overrides if "n_kv_heads" not in o]
    fails(tmp_path, *overrides, *override.split(), "hydra.run.dir=run", says=says)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_data_files(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "short.txt").write_text("too short")
    for name in ("empty", "binary"):
        fails(tmp_path, *small(tmp_path, f"data.path={name}.txt"), says=f"data.path={name}.txt")
    fails(
        tmp_path, *small(tmp_path, "data.path=short.txt"), says=("train.seq_len=16 needs at least 17 tokens", "has 8")
    )


def test_what_has_no_place_here(tmp_path):
    fails(tmp_path, "data=mqar", "tokenizer=bpe", says="tokenizer=bpe would be ignored: data=mqar")
    fails(tmp_path, "data=mqar", "tokenizer=bpe", "tokenizer.vocab_size=300", says="tokenizer.vocab_size=300 would be")
    fails(tmp_path, "callback=[]", "callback.sample.every=5", says="no kind of callback is chosen here that has it")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run and its directory."""
    directory = tmp_path_factory.mktemp("finished")
    result = run(compose(small(directory)), directory / "run")
    assert result.status == "ok"
    return directory / "run"


def test_resume_of_what_is_no_run(finished, tmp_path):
    fails(tmp_path, "resume=nowhere", says="resume=nowhere")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").write_text("keep me")
    fails(tmp_path, "resume=foreign", says="resume=foreign")
    assert [p.name for p in (tmp_path / "foreign").iterdir()] == ["letter.txt"], "a foreign directory is left alone"


def test_resume_with_other_settings(finished, tmp_path):
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    fails(tmp_path, f"resume={finished}", "attention=mqa", says=("attention", "gqa", "new run"))
    fails(tmp_path, f"resume={finished}", "model.d_model=64", says=("model.d_model", "new run"))
    fails(tmp_path, f"resume={finished}", "seed=7", says=("seed", "new run"))
    after = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file() and p.suffix != ".log"}
    assert after == {p: b for p, b in before.items() if p.suffix != ".log"}


def test_resume_with_other_data(tmp_path):
    """A text that was edited in between is not gone on with, and is once it is restored."""
    overrides = small(tmp_path, "train.checkpoint_every=6")
    text = tmp_path / next(o for o in overrides if o.startswith("data.path=")).partition("=")[2]
    assert run(compose(overrides), tmp_path / "run").status == "ok"
    more = [f"resume={tmp_path / 'run'}", "train.steps=14"]
    before = text.read_text()
    text.write_text(before.replace("e", "a", 1))
    fails(tmp_path, *more, says=("resume=", "data has changed", "fingerprint"))
    text.write_text(before)
    assert lmxexp(*more, cwd=tmp_path).returncode == 0


def test_checkpoint_cut_short(finished, tmp_path):
    """Named with the mend; the mend works, and ends where the run had ended."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "summary.json").unlink()
    newest = sorted((copy / "checkpoints").glob("step_*"))[-1]
    file = newest / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    fails(tmp_path, f"resume={copy}", says=("step_00000012", "1000 of", "delete"))
    shutil.rmtree(newest)
    assert lmxexp(f"resume={copy}", cwd=tmp_path).returncode == 0
    assert_same_run(copy, finished)


def test_a_directory_that_holds_a_run_is_not_overwritten(finished, tmp_path):
    fails(tmp_path, *small(tmp_path), f"hydra.run.dir={finished}", says=("resume=",))


def test_divergence(tmp_path):
    """Stops with step, learning rate and last good checkpoint; the checkpoint is not of the broken weights."""
    done = fails(
        tmp_path,
        *small(tmp_path, "optim=sgd", "optim.learning_rate=1e12", "train.max_grad_norm=null", "hydra.run.dir=run"),
        "train.checkpoint_every=1",
        "schedule.warmup_steps=6",
        says=("step", "learning rate", "optim.learning_rate"),
    )
    assert done.returncode == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "diverged"
    assert "train/loss is" in summary["error"]


def test_memory_limit(tmp_path):
    fails(tmp_path, *small(tmp_path, "train.memory_limit_gb=0.0001", "hydra.run.dir=run"), says="train.memory_limit_gb")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0 or sys.platform != "linux", reason="mounts a small disk")
def test_full_disk(tmp_path):
    """The run ends with a message; the checkpoints before it are whole, and it goes on from them."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("no permission to mount")
    try:
        overrides = small(tmp_path, "train.checkpoint_every=2", "train.keep=9", f"hydra.run.dir={disk}/run")
        fails(tmp_path, *overrides, says=("No space left", "resume="))
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert lmxexp(f"resume={disk}/run", cwd=tmp_path).returncode == 0
        run(compose(overrides[:-1]), tmp_path / "whole")
        assert_same_run(disk / "run", tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_traceback_on_request(tmp_path):
    done = lmxexp(*small(tmp_path, "model.n_heads=3", "debug.traceback=true"), cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
