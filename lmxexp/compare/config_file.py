"""``config.yaml`` of a run, read fast: hundreds of runs differ in a few lines."""

from __future__ import annotations

import re
from typing import Any

import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SECTION = re.compile(r"^(?=[^\s\-#])", re.MULTILINE)
"""Before a line that starts a top-level key: neither indented, nor an item of a list, nor a comment."""
_ALIAS = re.compile(r"(?:^|[\s\[,])[&*]\w")


class ConfigReader:
    """Reads configurations and remembers their top-level sections by text, so that equal ones are parsed once.

    What it returns shares those sections: it is to be read, not changed.
    """

    def __init__(self) -> None:
        self._known: dict[str, dict[str, Any]] = {}

    def read(self, text: str) -> dict[str, Any]:
        """The configuration as plain containers.

        Raises:
            yaml.YAMLError: it is no YAML.
            ValueError: it is no mapping.
        """
        if _ALIAS.search(text):  # a section may then speak of another
            return _mapping(text)
        config: dict[str, Any] = {}
        for section in _SECTION.split(text):
            if section.strip():
                config |= self._section(section)
        return config

    def _section(self, text: str) -> dict[str, Any]:
        if text not in self._known:
            self._known[text] = _mapping(text)
        return self._known[text]


def flatten(config: dict[str, Any]) -> dict[str, Any]:
    """``{"model.d_model": 128, …}``. Lists are values; an empty mapping is one as well."""
    flat: dict[str, Any] = {}

    def walk(node: dict[str, Any], prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict) and value:
                walk(value, f"{prefix}{key}.")
            else:
                flat[f"{prefix}{key}"] = value

    walk(config, "")
    return flat


def _mapping(text: str) -> dict[str, Any]:
    content = yaml.load(text, _LOADER)
    if content is None:  # nothing but comments
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"it holds {content!r:.40} where a mapping should be")
    return content
