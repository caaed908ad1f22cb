"""A run whose optimizer averages is evaluated, sampled and read back with the average, and trains on with the rest."""

import mlx.core as mx

import lmxexp
from lmxexp import device
from lmxexp.build import build
from lmxexp.data.build import build_source
from lmxexp.ops.trees import by_path
from lmxexp.train import checkpoint
from lmxexp.train.evaluator import Evaluator
from lmxexp.train.precision import compute_dtype, resolve
from tests.end_to_end.processes import assert_same_run, small


def run(directory, *overrides):
    cfg = lmxexp.compose(small(directory.parent, "train.n_micro=1", "schedule=constant", *overrides))
    return cfg, lmxexp.run(cfg, directory)


def test_what_is_logged_and_loaded_is_the_average(tmp_path):
    cfg, result = run(tmp_path / "run", "optim=schedule_free_adamw", "optim.learning_rate=1e-2")
    loaded = lmxexp.load(result.run_dir)
    saved = checkpoint.read(checkpoint.newest(result.run_dir / "checkpoints")).load("model")
    found = by_path(loaded.model.parameters())
    differing = [path for path, a in saved.items() if not mx.array_equal(a, found[path]).item()]
    assert len(differing) > len(saved) / 2
    as_run = compute_dtype(resolve(cfg.train.precision, on_gpu=device.is_gpu()))
    evaluate = Evaluator(loaded.model, build(cfg.loss), build_source(cfg), compute_dtype=as_run)
    assert evaluate()["eval/loss"] == result.summary["eval/loss"]
    loaded.model.load_weights(list(saved.items()))
    assert evaluate()["eval/loss"] != result.summary["eval/loss"]


def test_an_evaluation_between_changes_nothing(tmp_path):
    """Training goes on with the trained weights, not with those that were evaluated."""
    for name, every in (("often", 2), ("seldom", 12)):
        run(tmp_path / name, "optim=schedule_free_adamw", f"train.eval_every={every}", "callback.sample.every=0")
    newest = [checkpoint.newest(tmp_path / name / "checkpoints") for name in ("often", "seldom")]
    saved = [checkpoint.read(path).load("model") for path in newest]
    assert all(mx.array_equal(a, saved[1][path]).item() for path, a in saved[0].items())


def test_it_goes_on_to_the_bit(tmp_path):
    common = ["optim=schedule_free_sgd", "optim.learning_rate=0.1", "schedule.steps=12"]
    run(tmp_path / "whole", *common)
    run(tmp_path / "stopped", *common, "train.steps=8")
    cfg = lmxexp.compose(small(tmp_path, "train.n_micro=1", "schedule=constant", *common))
    cfg.resume = str(tmp_path / "stopped")
    lmxexp.run(cfg)
    (tmp_path / "whole" / "samples.txt").unlink()
    (tmp_path / "stopped" / "samples.txt").unlink()
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
