"""A Hugging Face directory as a model of ours: what ``model=from_hf model.path=DIR`` builds."""

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx

from lmxexp.build import build
from lmxexp.compose import compose
from lmxexp.export.family import InexpressibleError, Tie, usual_name
from lmxexp.export.write import family_names, load_family, model_type_of
from lmxexp.interfaces import ConfigError
from lmxexp.model.language_model import LanguageModel
from lmxexp.ops.trees import by_path

_BUFFERS = r"rotary_emb\.inv_freq$"
"""Names in older checkpoints, of all families, that are no weights."""


def from_hf(vocab_size: int, path: str, revision: str = "main", dropout: float = 0.0) -> LanguageModel:
    """A published model with its weights, in fp32.

    Args:
        vocab_size: of the data; has to be the model's own or that of the tokenizer that lies with it, which may have
            fewer tokens than the matrix has rows.
        path: a directory with ``config.json`` and safetensors, or a name on the hub such as ``Qwen/Qwen3-0.6B``.
        revision: branch, tag or commit on the hub; used for hub names.
        dropout: as ``model.dropout`` of other models; what ``config.json`` says about dropout is not read.

    Raises:
        ConfigError: there is no such model, no family of ours has its design, its files are incomplete, or the data's
            tokenizer is another.
    """
    directory = _directory(path, revision)
    config = _read_json(directory / "config.json", path)
    _check_vocabulary(vocab_size, config, directory, path)
    family = _family(config, path)
    if "quantization_config" in config or "quantization" in config:
        raise ConfigError(f"model.path={path} is quantised, which is not read: give the model that it was made from")
    try:
        overrides = family.overrides(config)
    except InexpressibleError as error:
        raise ConfigError(f"model.path={path}: this {config['model_type']} cannot be composed: {error}") from error
    cfg = compose([*overrides, f"model.dropout={dropout}"])
    model = build(cfg.model.net)(vocab_size=config["vocab_size"])
    weights = ours(family.ties(model), _weights(directory, family, config, path), by_path(model.parameters()), path)
    model.load_weights(list(weights.items()))
    mx.eval(model.parameters())  # now, not when the files may have been replaced
    return model


def ours(ties: list[Tie], theirs: dict[str, mx.array], wanted: dict[str, mx.array], path: str) -> dict[str, mx.array]:
    """Their arrays by our names, in the types of ``wanted``.

    Raises:
        ConfigError: arrays are missing, of other shapes, or left over.
    """
    names = {name for tie in ties for name in tie.theirs}
    if missing := sorted(names - set(theirs)):
        raise ConfigError(f"model.path={path} lacks {_some(missing)}")
    if left := sorted(set(theirs) - names):
        raise ConfigError(f"model.path={path} has weights that its config.json leaves no place for: {_some(left)}")
    result: dict[str, mx.array] = {}
    for tie in ties:
        for name, array in zip(tie.ours, tie.to_ours(*(theirs[n] for n in tie.theirs)), strict=True):
            if array.shape != wanted[name].shape:
                want, found = list(wanted[name].shape), list(array.shape)
                raise ConfigError(f"model.path={path}: {name} is {found} there, and {want} by its config.json")
            # Laid out as if made here: products of a transposed view round otherwise.
            result[name] = mx.contiguous(array.astype(wanted[name].dtype))
    assert sorted(result) == sorted(wanted), f"tied twice or not at all: {sorted(set(result) ^ set(wanted))}"
    return result


def _directory(path: str, revision: str) -> Path:
    """The directory, had from the hub if there is none of that name."""
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or local.exists():
        raise ConfigError(f"model.path={path} is no directory: give one with config.json, or a name on the hub")
    from huggingface_hub import snapshot_download

    wanted = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"]
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=wanted))
    except Exception as error:  # network, name and permission errors come in many types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"model.path={path} is no directory and could not be had from the hub at model.revision={revision} "
            f"({reason}): check the name and the network, or give a directory"
        ) from error


def _read_json(file: Path, path: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"model.path={path} has no {file.name}: give the directory of a model") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path={path}: {file.name} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"model.path={path}: {file.name} is no mapping")
    return content


def _family(config: dict[str, Any], path: str) -> Any:
    types = {model_type_of(name): name for name in family_names()}
    model_type = config.get("model_type")
    if model_type not in types:
        raise ConfigError(f"model.path={path} is a model of type {model_type}; known are {', '.join(sorted(types))}")
    return load_family(types[model_type])


def _check_vocabulary(vocab_size: int, config: dict[str, Any], directory: Path, path: str) -> None:
    """The data's tokens have to be the model's."""
    known = {config.get("vocab_size")}
    if (directory / "tokenizer.json").is_file():
        from lmxexp.tokenizer.pretrained import PretrainedTokenizer

        known.add(PretrainedTokenizer(str(directory)).vocab_size)
    if vocab_size not in known:
        raise ConfigError(
            f"the data has {vocab_size} tokens, but model.path={path} was made for {config.get('vocab_size')}: "
            f"tokenizer=pretrained tokenizer.path={path} gives it its own"
        )


def _weights(directory: Path, family: Any, config: dict[str, Any], path: str) -> dict[str, mx.array]:
    """All arrays of the checkpoint that are weights, by the names of the family's ties."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(_read_json(index, path)["weight_map"].values()))
    else:
        files = sorted(f.name for f in directory.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"model.path={path} has no safetensors: other formats are not read")
    arrays: dict[str, mx.array] = {}
    for name in files:
        if not (directory / name).is_file():
            raise ConfigError(f"model.path={path} lacks {name}, which {index.name} names")
        loaded = mx.load(str(directory / name))
        assert isinstance(loaded, dict)
        arrays |= loaded
    buffers = re.compile("|".join(filter(None, [_BUFFERS, getattr(family, "BUFFERS", "")])))
    arrays = {usual_name(family, name): a for name, a in arrays.items() if not buffers.search(name)}
    if config.get("tie_word_embeddings", getattr(family, "DEFAULTS", {}).get("tie_word_embeddings", False)):
        arrays.pop("lm_head.weight", None)  # the embedding once more
    return arrays


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
