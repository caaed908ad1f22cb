"""A model as a Hugging Face directory."""

import importlib
import json
import os
import pkgutil
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
from omegaconf import DictConfig

from lmxexp import __version__
from lmxexp.export import families
from lmxexp.export.family import Checks, InexpressibleError, Tie
from lmxexp.export.tokenizer_files import tokenizer_files
from lmxexp.interfaces import ConfigError, Tokenizer
from lmxexp.model.language_model import LanguageModel
from lmxexp.ops.trees import by_path

MARK = "exported_by"
"""The key in ``config.json`` by which a directory of ours is known again."""


def export(model: LanguageModel, cfg: DictConfig, out_dir: str | Path, tokenizer: Tokenizer | None = None) -> str:
    """Write ``config.json``, ``generation_config.json``, ``model.safetensors`` and, with a tokenizer, its files.

    Args:
        model: any model of ours.
        cfg: its configuration: the preset's own family is tried first, and ``train.seq_len`` is stated as the longest
            sequence it was made for.
        out_dir: made if it is not there; an existing export in it is replaced.
        tokenizer: written too, so that ``AutoTokenizer`` loads it.

    Returns:
        The family's name.

    Raises:
        ConfigError: no family can express the model, and what stands in the way of the nearest; a directory that holds
            something else; a tokenizer that the library has no form for.
    """
    out = Path(out_dir).expanduser()
    _check_replaceable(out)
    name, family, config = _find(model, _preferred(cfg))
    max_len = model.max_len or cfg.train.seq_len
    model_type = model_type_of(name)
    general = {
        "architectures": [family.ARCHITECTURE],
        "model_type": model_type,
        "dtype": str(by_path(model.parameters())["embedding.embed_tokens.weight"].dtype).removeprefix("mlx.core."),
        "max_position_embeddings": max_len,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_id if tokenizer else None,
        "pad_token_id": None,
        MARK: f"lmxexp {__version__}",
    }
    files: dict[str, Any] = {
        "config.json": {**general, **_older_rope(config), **config},
        "generation_config.json": {key: general[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    }
    if tokenizer is not None:
        files |= tokenizer_files(tokenizer, max_len, model_type)
    _write(out, files, theirs(family.ties(model), by_path(model.parameters())))
    return name


def theirs(ties: list[Tie], ours: dict[str, mx.array]) -> dict[str, mx.array]:
    """Our arrays by their names."""
    tied = [name for tie in ties for name in tie.ours]
    assert sorted(tied) == sorted(ours), f"tied twice or not at all: {sorted(set(tied) ^ set(ours))}"
    return {
        name: array
        for tie in ties
        for name, array in zip(tie.theirs, tie.to_theirs(*(ours[n] for n in tie.ours)), strict=True)
    }


def family_names() -> list[str]:
    """All families there are."""
    return sorted(m.name for m in pkgutil.iter_modules(families.__path__))


def load_family(name: str) -> Any:
    """The module of a family."""
    return importlib.import_module(f"lmxexp.export.families.{name}")


def model_type_of(name: str) -> str:
    """What ``config.json`` calls the family."""
    return getattr(load_family(name), "MODEL_TYPE", name)


def _preferred(cfg: DictConfig) -> str:
    """The family to try first: the one named like the preset, or the one that the model was read from."""
    preset = str(cfg.get("choice", {}).get("model", ""))
    file = Path(str(cfg.model.get("path", "")), "config.json")
    if preset != "from_hf" or not file.is_file():
        return preset
    model_type = json.loads(file.read_text()).get("model_type")
    return next((name for name in family_names() if model_type_of(name) == model_type), "")


def _find(model: LanguageModel, preferred: str) -> tuple[str, Any, dict[str, Any]]:
    """The family that can express the model, the preferred one first."""
    reasons, checks = {}, {}
    for name in sorted(family_names(), key=lambda name: name != preferred):
        family, before = load_family(name), Checks.passed
        try:
            return name, family, family.config(model)
        except InexpressibleError as error:
            reasons[name], checks[name] = str(error), Checks.passed - before
    nearest = preferred if preferred in reasons else max(checks, key=lambda name: checks[name])
    raise ConfigError(f"no published family has this design; what keeps it from being {nearest}: {reasons[nearest]}")


def _older_rope(config: dict[str, Any]) -> dict[str, Any]:
    """``rope_parameters`` under the names that stood at the top before transformers 5: mlx-lm reads these."""
    rope = config.get("rope_parameters")
    if rope is None or "rope_type" not in rope:  # none, or several by type of layer
        return {}
    older = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    return older if rope["rope_type"] == "default" else {**older, "rope_scaling": rope}


def _check_replaceable(out: Path) -> None:
    """Raise `ConfigError` unless the directory is empty, absent or an export of ours."""
    if out.is_dir() and any(out.iterdir()):
        try:
            config = json.loads((out / "config.json").read_text())
        except (OSError, ValueError):
            config = None
        if not isinstance(config, dict) or MARK not in config:
            raise ConfigError(f"{out} holds files that are no export of ours: give an empty or a new directory")
    elif out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: give an empty or a new directory")


def _write(out: Path, files: dict[str, Any], weights: dict[str, mx.array]) -> None:
    """Everything beside the directory first, then moved into it: a disk that fills up leaves the old export whole."""
    out.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        with open(temporary / "model.safetensors", "wb") as f:  # MLX's own writer is silent about a full disk
            mx.save_safetensors(f, weights, metadata={"format": "pt"})
        for name, content in files.items():
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (temporary / name).write_text(text + "\n", encoding="utf-8")
        for stale in ("tokenizer.json", "tokenizer_config.json"):
            (out / stale).unlink(missing_ok=True)
        for file in temporary.iterdir():
            os.replace(file, out / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
