"""The text of ``--help``: every kind of every group, in its own words."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from lmxexp.cli import conf
from lmxexp.cli.short_names import PARENT

_USAGE = """\
usage: python -m lmxexp [GROUP=KIND …] [KEY=VALUE …] [flags]      (or: lmxexp …)

  python -m lmxexp model=llama attention=gqa                 one run
  python -m lmxexp -m attention=mha,gqa seed=1,2,3           every combination, one after the other
  python -m lmxexp resume=RUN_DIR                            go on with a run, bit for bit
  python -m lmxexp branch=RUN_DIR schedule=cooldown schedule.cooldown_steps=100
                                                             a new run from that one's newest checkpoint"""

_OVERRIDES = [
    ("train.steps=500", "optimizer steps; also train.batch_size, train.seq_len, train.precision …"),
    ("seed=3", "of the initial weights and dropout; data.seed is the data's own"),
    ("size=10m", "how big; or one number: model.d_model=256 model.n_layers=6"),
    ("attention.n_heads=4", "a setting of a chosen kind"),
    ("optim.learning_rate=3e-4", "the peak; schedule=… gives its course"),
    ("data=text data.path=FILE", "your own text"),
    ("logger=[console,jsonl]", "several kinds at once: a list"),
    ("debug=default", "a few seconds, self-tested, with tracebacks"),
    ("hydra.run.dir=DIR", "where the run is written; LMXEXP_OUTPUTS=DIR: where all of them are"),
    ("debug.traceback=true", "the whole traceback of an error"),
]

_FLAGS = [
    ("-m, --multirun", "run every combination of comma-separated values"),
    ("--cfg job", "show the configuration, do not run; with --resolve the values behind ${…}"),
    ("--info defaults", "show which files it was composed of, in order"),
    ("--config-dir DIR", "your own kinds: DIR/model/attention/mine.yaml makes attention=mine"),
    ("--hydra-help", "Hydra's own flags"),
    ("--version", "the version"),
]

_COMPLETION = """\
Completion of the command `lmxexp`, for this shell or from ~/.bashrc:   eval "$(lmxexp -sc install=bash)"
(install=zsh and install=fish likewise)"""


def text(config_dir: Path | None = None) -> str:
    """The whole of it.

    Args:
        config_dir: of the user; its kinds are listed with ours.
    """
    # Lines are cut to a terminal's width; what is piped (to grep, say) is whole.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    roots = [conf.conf_dir(), *([config_dir] if config_dir is not None else [])]
    listed = _kinds(roots)
    top = {group: found for group, found in listed.items() if "/" not in group}
    palette = {group.removeprefix(PARENT + "/"): f for group, f in listed.items() if group.startswith(PARENT + "/")}
    deep = {g: f for g, f in listed.items() if "/" in g and not g.startswith(PARENT + "/")}
    lines = [_USAGE, "", _bold("Groups") + "  (* is what runs if nothing is said)"]
    lines += _list({**top, **deep}, _defaults(roots[0]), width)
    lines += ["", _bold("Parts of the model") + f"  (attention=… is short for {PARENT}/attention=…; * is llama's)"]
    lines += _list(palette, _defaults(roots[0], "model/llama.yaml"), width)
    lines += ["", _bold("Overrides"), *_table(_OVERRIDES, width), "", _bold("Flags"), *_table(_FLAGS, width)]
    return "\n".join([*lines, "", _COMPLETION])


def _kinds(roots: list[Path]) -> dict[str, dict[str, str]]:
    """``{group: {kind: line}}``; where two directories have the same kind, the first one's is used."""
    found: dict[str, dict[str, str]] = {}
    for root in roots:
        for group in conf.groups(root):
            if group == "hydra":
                continue
            for kind, file in conf.kinds(root, group).items():
                found.setdefault(group, {}).setdefault(kind, conf.describe(file))
    return found


def _defaults(root: Path, name: str = "config.yaml") -> dict[str, list[str]]:
    """What a defaults list chooses, by group."""
    import yaml

    file = root / name
    entries = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("defaults", []) if file.is_file() else []
    chosen: dict[str, list[str]] = {}
    for entry in entries:
        for key, value in entry.items() if isinstance(entry, dict) else ():
            kinds = value if isinstance(value, list) else [value]
            chosen.setdefault(key.partition("@")[0], []).extend(str(k) for k in kinds if k is not None)
    return chosen


def _list(groups: dict[str, dict[str, str]], defaults: dict[str, list[str]], width: int) -> list[str]:
    lines = []
    indent = max((len(kind) for kinds in groups.values() for kind in kinds), default=0) + 5
    for group, kinds in groups.items():
        lines.append(f"  {_bold(group + '=')}")
        for kind, line in kinds.items():
            mark = "*" if kind in defaults.get(group, []) else " "
            lines.append(f"  {mark} {kind:<{indent - 4}} {_cut(line, width - indent - 1)}".rstrip())
    return lines


def _table(rows: list[tuple[str, str]], width: int) -> list[str]:
    return [f"  {left:<26}{_cut(right, width - 28)}" for left, right in rows]


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: max(width - 1, 1)] + "…"


def _bold(words: str) -> str:
    return f"\033[1m{words}\033[0m" if sys.stdout.isatty() else words
