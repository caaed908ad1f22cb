"""Runs read back."""

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from omegaconf import DictConfig

from lmxexp import run_files
from lmxexp.interfaces import ConfigError, Tokenizer
from lmxexp.model.build import build_model
from lmxexp.model.language_model import LanguageModel
from lmxexp.optim.averaging import averages, evaluated
from lmxexp.optim.build import optimizer_of
from lmxexp.tokenizer.load import load as load_tokenizer
from lmxexp.train import checkpoint
from lmxexp.train.snapshot import fill


@dataclass(frozen=True)
class LoadedRun:
    """A finished or stopped run, read back."""

    model: LanguageModel
    tokenizer: Tokenizer | None
    cfg: DictConfig
    step: int


def load(run_dir: str | Path, which: str = "newest") -> LoadedRun:
    """Model, tokenizer and configuration of a run; with the weights that its optimizer is judged by.

    Args:
        run_dir: the run's directory.
        which: ``newest`` or ``best`` checkpoint.

    Raises:
        ConfigError: not a run, or no such checkpoint.
    """
    directory = Path(run_dir)
    cfg = run_files.load_config(directory)
    path = {"newest": checkpoint.newest, "best": checkpoint.best}[which](directory / "checkpoints")
    if path is None:
        raise ConfigError(f"{directory} has no {which} checkpoint: was the run stopped before its first?")
    saved = checkpoint.read(path)
    record = run_files.load_record(directory)
    model = build_model(cfg, vocab_size=record["vocab_size"])
    if record["precision"] == "bf16":
        model.set_dtype(mx.bfloat16)
    arrays = saved.load("model")
    checkpoint.check_shapes(model.parameters(), arrays, f"{path}/model.safetensors")
    model.load_weights(list(arrays.items()))
    optimizer = optimizer_of(cfg)
    if averages(optimizer):
        optimizer.init(model.trainable_parameters())
        fill(optimizer.state, saved.load("optimizer"))
        model.update(evaluated(optimizer, model.trainable_parameters()))
    model.eval()
    mx.eval(model.state)  # what is not computed yet, MLX can compute in this thread alone
    tokenizer = directory / "tokenizer.json"
    return LoadedRun(model, load_tokenizer(tokenizer) if tokenizer.exists() else None, cfg, saved.step)
