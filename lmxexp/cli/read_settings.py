"""Which settings a run reads, found by following the interpolations from what is built.

A run builds the nodes named in `ROOTS`. Each of them, everything below it, and everything that a ``${…}`` in it points
at is read; what is not reached that way has no effect, whatever its value.
"""

from __future__ import annotations

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

ROOTS = (
    *("train", "model.net", "model.init", "optim", "param_groups", "schedule", "ramp"),
    *("data", "tokenizer", "loss", "callback", "logger"),
)
"""What `lmxexp.run.run` builds."""

PLAIN = ("seed", "name", "tags", "resume", "branch", "debug")
"""What it reads as it stands."""

_INNERMOST = re.compile(r"\$\{([^${}]*)\}")


class ReadSettings:
    """The settings reached from some roots of a configuration.

    Args:
        cfg: the configuration, unresolved.
        roots: dotted paths; one that does not exist is left out.
    """

    def __init__(self, cfg: DictConfig, roots: tuple[str, ...] = (*ROOTS, *PLAIN)) -> None:
        self._cfg = cfg
        self._raw = OmegaConf.to_container(cfg, resolve=False)
        self.paths: dict[str, None] = {}
        """Every path that is read, in the order it was reached."""
        self.targets: list[str] = []
        """The paths of the nodes with a ``_target_``."""
        for root in roots:
            self._visit(root)

    def raw(self, path: str) -> Any:
        """The value as written, following interpolations on the way to it but not its own; None if there is none."""
        return self._look_up(path)[1]

    def source(self, path: str) -> str:
        """Where the value at ``path`` is written: the end of a chain of plain ``${…}``."""
        for _ in range(32):  # a circle ends as an error of the resolution
            path, value = self._look_up(path)
            target = _plain_reference(value, path)
            if target is None:
                return path
            path = target
        return path

    def is_read(self, path: str) -> bool:
        """Whether the setting, or something in it, is read."""
        path = self._look_up(path)[0]
        return path in self.paths or any(p.startswith(path + ".") for p in self.paths)

    def _look_up(self, path: str) -> tuple[str, Any]:
        """The path with every interpolated container replaced by what it stands for, and the raw value there."""
        here, value = "", self._raw
        for part in path.split("."):
            target = _plain_reference(value, here)
            if target is not None:
                here, value = self._look_up(self.source(target))
            if isinstance(value, dict):
                # YAML keys may be numbers.
                value = value.get(part, value.get(int(part)) if part.isdigit() else None)
            elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            else:
                value = None
            here = f"{here}.{part}" if here else part
        return here, value

    def _visit(self, path: str) -> None:
        path, value = self._look_up(path)
        if path in self.paths:
            return
        self.paths[path] = None
        if isinstance(value, str):
            for reference in self._references(value, path):
                self._visit(reference)
        elif isinstance(value, dict):
            if "_target_" in value:
                self.targets.append(path)
            for key in value:
                self._visit(f"{path}.{key}")
        elif isinstance(value, list):
            for i in range(len(value)):
                self._visit(f"{path}.{i}")

    def _references(self, text: str, path: str) -> list[str]:
        """The paths that a string's ``${…}`` point at, nested ones first."""
        found = []
        while match := _INNERMOST.search(text):
            inner, stands_for = match[1].strip(), ""
            if ":" in inner:  # a resolver; of ours only oc.select reads a setting
                name, _, arguments = inner.partition(":")
                if name == "oc.select":
                    found.append(_absolute(arguments.split(",")[0].strip(), path))
            else:
                target = _absolute(inner, path)
                found.append(target)
                if match.span() != (0, len(text)):  # a part of the name of another: ${sizes.${size}}
                    stands_for = str(OmegaConf.select(self._cfg, target, throw_on_missing=False))
            text = text[: match.start()] + stands_for + text[match.end() :]
        return found


def _absolute(reference: str, at: str) -> str:
    """``${..x}`` counts from the node's parent: one dot is the node's own level."""
    dots = len(reference) - len(reference.lstrip("."))
    if not dots:
        return reference
    above = at.split(".")[:-dots]
    return ".".join([*above, reference[dots:]])


def _plain_reference(value: Any, at: str) -> str | None:
    """The path that a value stands for if it is one plain ``${path}``."""
    if not isinstance(value, str):
        return None
    match = _INNERMOST.fullmatch(value.strip())
    return _absolute(match[1].strip(), at) if match and ":" not in match[1] else None
