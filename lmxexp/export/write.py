"""A model as a Hugging Face directory."""

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

import mlx.core as mx
from omegaconf import DictConfig

from lmxexp.export import families
from lmxexp.export.family import Family, InexpressibleError, Tie
from lmxexp.interfaces import ConfigError, Tokenizer
from lmxexp.model.language_model import LanguageModel
from lmxexp.ops.trees import by_path


def export(model: LanguageModel, cfg: DictConfig, out_dir: str | Path, tokenizer: Tokenizer | None = None) -> str:
    """Write ``config.json``, ``model.safetensors`` and, with a tokenizer, its files.

    Args:
        model: any model of ours.
        cfg: its configuration: the preset's own family is tried first, and ``train.seq_len`` is stated as the longest
            sequence it was made for.
        out_dir: made if it is not there; an existing export in it is replaced.
        tokenizer: written too, so that ``AutoTokenizer`` loads it.

    Returns:
        The family, which is ``model_type`` in ``config.json``.

    Raises:
        ConfigError: no family can express the model; says what stands in the way of the nearest.
    """
    name, family, config = _find(model, str(cfg.get("choice", {}).get("model", "")))
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    general = {
        "architectures": [getattr(family, "ARCHITECTURE")],  # noqa: B009 (a module)
        "model_type": getattr(family, "MODEL_TYPE", name),
        "dtype": str(by_path(model.parameters())["embedding.embed_tokens.weight"].dtype).removeprefix("mlx.core."),
        "max_position_embeddings": model.max_len or cfg.train.seq_len,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_id if tokenizer else None,
        "pad_token_id": None,
    }
    (out / "config.json").write_text(json.dumps({**general, **config}, indent=2) + "\n")
    weights = theirs(family.ties(model), by_path(model.parameters()))
    mx.save_safetensors(str(out / "model.safetensors"), weights, metadata={"format": "pt"})
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


def _find(model: LanguageModel, preset: str) -> tuple[str, Family, dict[str, Any]]:
    """The family that can express the model, the preset's own first."""
    names = sorted(family_names(), key=lambda name: name != preset)
    reasons = {}
    for name in names:
        family = load_family(name)
        try:
            return name, family, family.config(model)
        except InexpressibleError as error:
            reasons[name] = str(error)
    nearest = preset if preset in reasons else "llama"
    raise ConfigError(f"no published family has this design; what keeps it from being {nearest}: {reasons[nearest]}")
