"""Writes docs/kinds.md from the YAML files' first lines and the classes' docstrings: ``python docs/kinds.py``."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from lmxexp.cli import conf
from lmxexp.cli.short_names import PARENT
from lmxexp.cli.signature import locate

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
PAGE = ROOT / "docs" / "kinds.md"

HEAD = """\
# All kinds at a glance

Every kind of every group: what `<group>=<kind>` chooses on the command line, the classes that its YAML configures,
which choices of the palette it reads, what it costs, what it refuses, and where it comes from. Costs are of one
layer's forward pass, a multiply-add being two FLOPs; `python -m lmxexp.describe` counts a whole model. The letters
are those of [`lmxexp/interfaces.py`](../lmxexp/interfaces.py).

Written by `python docs/kinds.py`.
"""
# Shown first, in this order; the others follow by name.
FIRST = [f"{PARENT}/{g}" for g in ("attention", "ffn", "position", "norm", "qk_norm", "block", "embedding")]
LEFT_OUT = ("hydra", "experiment", "debug", PARENT, f"{PARENT}/size")
SECTION = re.compile(r"^(Args|Shapes|Returns|Cost|Raises|Source):[ ]*(.*)$")
# ``Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models"``.
CITATION = re.compile(r"(?:[A-Z][\w.'-]*(?:, | & | ))+(?:et al\.,? )?\d{4}, \"[^\"]+\"")
# Choices of the palette that a mixer reads, by what its YAML refers to.
REFERENCE = re.compile(r"\$\{model\.(\w+)")


def page() -> str:
    """The text of docs/kinds.md."""
    groups = [g for g in conf.groups(CONF) if g not in LEFT_OUT and not g.startswith("hydra/")]
    ordered = [g for g in FIRST if g in groups] + [g for g in groups if g not in FIRST]
    return "\n".join([HEAD, *_presets(), *(line for group in ordered for line in _group(group))]).rstrip() + "\n"


def _presets() -> Iterator[str]:
    yield "## model\n"
    yield "What a model is; `size=…` says how big ([counts](sizes.md)). Empty slots are not shown.\n"
    rows = [("preset", "what it is", "made of", "layers")]
    for name, file in conf.kinds(CONF, PARENT).items():
        content: dict[str, Any] = yaml.safe_load(file.read_text("utf-8"))
        made_of, layers = _made_of(content), _layers(content)
        rows.append((f"`{name}`", conf.describe(file), made_of, layers))
    yield from _table(rows)


def _made_of(preset: dict[str, Any]) -> str:
    chosen = []
    for entry in preset.get("defaults", []):
        for group, kind in entry.items() if isinstance(entry, dict) else ():
            if kind not in (None, "none") and not group.startswith(("size", "init", "/")):
                chosen.append(f"{group}={kind}")
    return " ".join(f"`{c}`" for c in chosen)


def _layers(preset: dict[str, Any]) -> str:
    pattern = preset.get("net", {}).get("pattern") or {}
    if not pattern and "defaults" in preset and "_base" not in preset["defaults"]:
        return ""
    first, repeat, last = (pattern.get(part) or [] for part in ("first", "repeat", "last"))
    parts = [*first, f"[{' '.join(repeat or ['layer'])}] …", *last]
    return f"`{' '.join(parts)}`"


def _group(group: str) -> Iterator[str]:
    name = group.removeprefix(f"{PARENT}/")
    yield f"\n## {name}\n"
    rows = [("kind", "what it is", "class", "reads", "cost", "refuses", "source")]
    for kind, file in conf.kinds(CONF, group).items():
        rows.append((f"`{kind}`", conf.describe(file), *_facts(_content(file))))
    yield from _table(rows)


def _content(file: Path) -> DictConfig:
    """`conf.content`, and in it the kinds that stand in places of their own: ``/model/attention@first: gqa``."""
    content = conf.content(file)
    for entry in yaml.safe_load(file.read_text("utf-8")).get("defaults", []):
        for where, kind in entry.items() if isinstance(entry, dict) else ():
            if where.startswith("override "):  # another group's choice, which has a line there
                continue
            group, _, place = where.partition("@")
            content[place] = _content(CONF / group.lstrip("/") / f"{kind}.yaml")
    return content


def _facts(content: DictConfig) -> tuple[str, str, str, str, str]:
    """Class, slots, cost, refusals and source of one kind, from the docstrings of all that its YAML names."""
    targets = dict.fromkeys(_targets(content))
    # Norms inside have a table of their own.
    sections = [_sections(t) for i, t in enumerate(targets) if i == 0 or ".norm." not in t]
    groups = {g.rpartition("/")[2] for g in conf.groups(CONF) if g.startswith(PARENT)} | {"score_softcap"}
    reads = sorted(set(REFERENCE.findall(OmegaConf.to_yaml(content))) & groups)
    first = sections[0] if sections else {}
    return (
        "<br>".join(_link(target) for target in targets),
        " ".join(f"`{r}`" for r in reads),
        first.get("Cost", ""),
        first.get("Raises", "").removeprefix("ConfigError: "),
        "<br>".join(dict.fromkeys(source for s in sections for source in _papers(s.get("Source", "")))),
    )


def _targets(node: Any) -> Iterator[str]:
    """What the ``_target_`` of a node and of those below it name, the node's own first."""
    if isinstance(node, DictConfig):
        if "_target_" in node and node["_target_"] != "lmxexp.model.none.none":
            yield node["_target_"]
        for key in node:
            if not OmegaConf.is_interpolation(node, key):
                yield from _targets(node._get_node(key))


def _link(target: str) -> str:
    module, _, name = target.rpartition(".")
    file = ROOT / f"{module.replace('.', '/')}.py"
    return f"[`{name}`](../{file.relative_to(ROOT)})" if file.is_file() else f"`{target}`"


def _sections(target: str) -> dict[str, str]:
    """The sections of a docstring by name, each as one line. What a class does not say its base may."""
    if not target.startswith("lmxexp."):
        return {}
    found = locate(target)
    result: dict[str, str] = {}
    for owner in inspect.getmro(found) if inspect.isclass(found) else (found,):
        if owner.__module__.startswith("lmxexp.") and owner.__doc__:
            result = {**_parsed(inspect.cleandoc(owner.__doc__)), **result}
    return result


def _parsed(doc: str) -> dict[str, str]:
    sections: dict[str, list[str]] = {}
    here: list[str] | None = None
    for line in doc.splitlines():
        if match := SECTION.match(line):
            here = sections.setdefault(match[1], [match[2]])
        elif not line.strip():
            here = None
        elif here is not None:
            here.append(line.strip())
    return {name: " ".join(filter(None, lines)).replace("``", "`") for name, lines in sections.items()}


def _papers(source: str) -> list[str]:
    """The works that a section names, without where in them, and where we differ; all of it where there is no title."""
    return CITATION.findall(source) or [source] * bool(source)


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """A table without the columns that nobody fills."""
    used = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    cell = lambda text: text.replace("|", "\\|")
    for n, row in enumerate(rows):
        yield "| " + " | ".join(cell(row[i]) for i in used) + " |"
        if n == 0:
            yield "|" + "---|" * len(used)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
