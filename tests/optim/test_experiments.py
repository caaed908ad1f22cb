"""The experiments about optimizers: what they promise, and that a run of each begins."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import lmxexp
from lmxexp.cli.conf import conf_dir, kinds
from lmxexp.counts import by_layer
from lmxexp.model.build import build_model

CONF = Path(conf_dir()) / "experiment"
TEXT = "to be or not to be, that is the question: " * 400


def arms(name):
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())["hydra"]["sweeper"]["params"]["optim"].split(",")


def test_optimizers_124m_has_the_published_shape():
    cfg = lmxexp.compose(["experiment=optimizers_124m"])
    model = build_model(cfg, vocab_size=50304)
    assert round(model.n_params() / 1e6, 2) == 123.59  # as the README of the published code says
    assert (cfg.train.batch_size * cfg.train.seq_len, cfg.model.attention.n_kv_heads) == (131072, 12)
    layers, _ = by_layer(model, 512)
    assert len(layers) == 12


def test_optimizers_are_those_that_there_are():
    everything = set(kinds(conf_dir(), "optim"))
    assert set(arms("optimizers_124m")) < everything
    # The rate of these does not move with the bracket's key alone: see the file.
    assert set(arms("optimizers_tiny")) == everything - {"muon", "dion"}


@pytest.mark.parametrize(
    ("name", "shrink"),
    [
        ("optimizers_124m", ["size=tiny", "model.d_ff=64", "train.n_micro=1", "tokenizer=byte", "~tokenizer.path"]),
        ("optimizers_tiny", []),
        ("lr_transfer", ["model.d_model=32", "model.n_heads=2"]),
    ],
)
def test_a_run_of_it_begins(name, shrink, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    data = ["data.path=text.txt"] if name != "optimizers_tiny" else ["data=text", "data.path=text.txt"]
    small = ["train.steps=2", "train.batch_size=2", "train.seq_len=16", "train.compile=false", "logger=[jsonl]"]
    line = ["-m", "lmxexp", f"experiment={name}", "callback=[evaluate]", *small, *data, *shrink, "hydra.run.dir=out"]
    done = subprocess.run([sys.executable, *line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["step"] == 2
