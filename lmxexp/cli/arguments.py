"""The command line, in the order and form that Hydra can read."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

_TAKES_VALUE = {
    "-cp": "--config-path",
    "-cn": "--config-name",
    "-cd": "--config-dir",
    "-c": "--cfg",
    "-p": "--package",
    "--experimental-rerun": "--experimental-rerun",
}
_TAKES_VALUE |= {long: long for long in _TAKES_VALUE.values()}
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


@dataclass
class CommandLine:
    """Flags and overrides, told apart."""

    flags: list[str]
    overrides: list[str]
    values: dict[str, str]
    """Of the flags that take one, by their long name."""

    def has(self, *names: str) -> bool:
        return any(name in self.flags for name in names)

    @property
    def config_dir(self) -> Path | None:
        return Path(self.values["--config-dir"]) if "--config-dir" in self.values else None

    @property
    def config_path(self) -> str | None:
        return self.values.get("--config-path")

    @property
    def multirun(self) -> bool:
        return self.has("-m", "--multirun")

    @property
    def runs(self) -> bool:
        """Whether something is to be run, not only shown."""
        return not (self.has("-sc", "--shell-completion", "--hydra-help", "-i", "--info") or "--cfg" in self.values)

    def argv(self) -> list[str]:
        """Overrides first: Hydra's parser refuses them on both sides of a flag, and ``--info`` swallows one."""
        return [*self.overrides, *self.flags]


def read(argv: list[str]) -> CommandLine:
    """Tell flags and overrides apart; make the paths of configurations absolute."""
    line = CommandLine([], [], {})
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if flag in _TAKES_VALUE and flag.startswith("-"):
            flag = _TAKES_VALUE[flag]
            if not equals:
                if not rest:
                    line.flags.append(flag)  # argparse says what is missing
                    continue
                value = rest.pop(0)
            if flag == "--config-dir" or (flag == "--config-path" and "://" not in value):
                # Hydra takes --config-path relative to the file of its main function, which is ours.
                value = os.path.abspath(os.path.expanduser(value))
            line.values[flag] = value
            line.flags += [flag, value]
        elif word in ("-i", "--info"):
            line.flags.append(word)
            if rest and rest[0] in _INFO:
                line.flags.append(rest.pop(0))
        elif word.startswith("-"):
            line.flags.append(word)
        else:
            line.overrides.append(word)
    return line


def of_completion(line: CommandLine, typed: str) -> CommandLine:
    """For a shell's question ``lmxexp -sc query=bash``: with the configuration directories of the line being typed."""
    try:
        words = shlex.split(typed)
    except ValueError:  # an open quote
        words = typed.split()
    values = read(words[1:]).values
    for flag in ("--config-dir", "--config-path", "--config-name"):
        if flag in values and flag not in line.values:
            line.values[flag] = values[flag]
            line.flags += [flag, values[flag]]
    return line
