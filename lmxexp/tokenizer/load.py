"""Reads back what any tokenizer's ``save`` wrote."""

import importlib
import json
from pathlib import Path

from lmxexp.interfaces import ConfigError, Tokenizer
from lmxexp.tokenizer.pretrained import PretrainedTokenizer


def load(path: str | Path) -> Tokenizer:
    """The tokenizer in a JSON file.

    The file names its class by import path under ``class``; ``class.from_state(contents)`` makes the tokenizer, so a
    class of the user's own is read back as well. A JSON file of the ``tokenizers`` library itself, which has a
    ``model`` and no ``class``, is read too.

    Raises:
        ConfigError: for a file that is missing, cut short or of another kind, and for a class that cannot be imported.
    """
    path = Path(path)
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"the tokenizer file {path} does not exist: give a file that a tokenizer's save wrote"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"the tokenizer file {path} cannot be read ({error}): give the whole file") from error
    if not isinstance(state, dict) or not ("class" in state or "model" in state):
        raise ConfigError(f"the JSON file {path} holds no tokenizer: give a file that a tokenizer's save wrote")
    if "class" not in state:
        return PretrainedTokenizer(path=str(path))
    module, _, name = str(state["class"]).rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"the tokenizer file {path} is of the class {state['class']}, which cannot be imported ({error}): "
            "put its package on the Python path"
        ) from error
    try:
        return cls.from_state(state)
    except Exception as error:  # whatever a damaged state leads to
        raise ConfigError(f"the tokenizer file {path} is damaged ({type(error).__name__}: {error})") from error
