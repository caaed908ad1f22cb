"""The coordinate check: what it measures, that it tells muP from the standard parametrisation, and what it prints."""

import json
import subprocess
import sys

import mlx.core as mx
import pytest

import lmxexp
from lmxexp import coordcheck
from lmxexp.interfaces import ConfigError
from lmxexp.model.build import build_model
from tests.end_to_end.processes import small
from tests.pythonpath import PYTHONPATH

WIDTHS = [64, 256]


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    text = tmp_path_factory.mktemp("data")
    own = ["schedule=constant", "schedule.warmup_steps=0", "train.n_micro=1", "model.dropout=0", "train.seq_len=32"]
    left_out = ("model.d_model", "model.n_heads", "model.n_kv_heads")
    return [*(o for o in small(text, *own) if not o.startswith(left_out)), "model.n_layers=2"]


def drifts(sizes):
    return {of_one.name: of_one.drift(-1) for of_one in sizes}


def test_mup_keeps_what_a_step_changes_and_the_standard_does_not(overrides):
    mup = drifts(coordcheck.coordinate_check([*overrides, "init=mup"], WIDTHS, 3, [1, 2]))
    standard = drifts(coordcheck.coordinate_check([*overrides, "init=gpt2"], WIDTHS, 3, [1, 2]))
    streams = [f"change of the stream after layer {i}" for i in range(2)]
    assert list(mup) == ["change of the stream after the embedding", *streams, "change of logits", "logits"]
    for name in streams:
        assert mup[name] < 1.25, name
        assert standard[name] > 3, name


def test_it_measures_the_model_s_own_stream_and_leaves_it_as_it_was(overrides):
    cfg = lmxexp.compose([*overrides, "model.d_model=64", "model.n_heads=2", "model.n_kv_heads=1"])
    model = build_model(cfg, vocab_size=256)
    tokens = mx.array([[1, 2, 3, 4]])
    layers, x = model.layers, model.embedding.embed(tokens)
    found = coordcheck._activations(model, tokens)
    assert model.layers is layers
    assert mx.array_equal(found["the stream after the embedding"], x).item()
    for i, layer in enumerate(layers):
        x, _ = layer(x)
        assert mx.allclose(found[f"the stream after layer {i}"], x).item()
    assert mx.allclose(found["logits"], model(tokens)).item()


def test_step_0_is_before_training(overrides):
    [*changes, logits] = coordcheck.coordinate_check([*overrides, "init=gpt2"], [64], 1, [1])
    assert all(of_one.values[0][0] == 0.0 for of_one in changes)
    assert all(of_one.values[0][1] > 0.0 for of_one in changes)
    assert logits.values[0][0] > 0.0


def test_a_width_of_no_whole_heads_is_refused(overrides):
    with pytest.raises(ConfigError, match="--widths 40 must be a multiple of 32"):
        coordcheck.coordinate_check(overrides, [40], 1, [1])


def command(directory, *args):
    return subprocess.run(
        [sys.executable, "-m", "lmxexp.coordcheck", *args],
        cwd=directory,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": PYTHONPATH, "OPENBLAS_NUM_THREADS": "1", "HOME": str(directory)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_command(overrides, tmp_path):
    small_check = ["--widths", "32", "64", "--steps", "1", "--seeds", "1"]
    done = command(tmp_path, *overrides, "init=mup", *small_check)
    assert done.returncode == 0, done.stderr
    assert "largest / smallest" in done.stdout
    assert (tmp_path / "outputs/coordcheck/model-llama_init-mup_optim-adamw.png").stat().st_size > 10_000
    done = command(tmp_path, *overrides, "init=mup", *small_check, "--json")
    found = json.loads(done.stdout)
    assert found["widths"] == [32, 64]
    assert len(found["sizes"]["logits"]) == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--steps", "0"], "--steps=0 must be at least 1"),
        (["init=mupp"], "did you mean mup"),
        (["init=mup", "optim=sgd", "--widths", "32"], "it has no learning rates for SGD"),
    ],
)
def test_bad_input(args, message, tmp_path):
    done = command(tmp_path, *args)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
