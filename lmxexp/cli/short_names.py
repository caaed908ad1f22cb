"""Short names: ``attention=gqa`` for ``model/attention=gqa``, and so ``attention.n_heads=4`` too.

There is no table: every folder of ``conf/model`` (and of the user's ``--config-dir``/model) has one. The rewriting
happens where Hydra parses overrides, so it holds wherever overrides are written: on the command line, with
``--multirun``, in ``hydra.sweeper.params``, for every sweeper, in ``--cfg``, ``--info`` and `lmxexp.compose`; a second
hook does it in shell completion.
"""

from __future__ import annotations

import re

from lmxexp.cli import arguments, conf

PARENT = "model"

_OVERRIDE = re.compile(r"(?P<op>\+\+|\+|~)?(?P<head>[A-Za-z_]\w*)(?P<rest>[./@=].*)?", re.DOTALL)
_LONG = re.compile(rf"(?P<op>\+\+|\+|~)?{PARENT}[./](?P<rest>.*)", re.DOTALL)
_PALETTE_ENTRY = re.compile(r"@(?P<name>[A-Za-z]\w*)(?P<rest>=.*)?$", re.DOTALL)


def short_names() -> dict[str, str]:
    """``{"attention": "model/attention", …}``. A group at the top keeps its own name."""
    roots = conf.directories()
    top = {name for root in roots for name in conf.folders(root)}
    below = {name for root in roots for name in conf.folders(root / PARENT)}
    return {name: f"{PARENT}/{name}" for name in sorted(below - top)}


def expand(override: str) -> str:
    """The long form of one override; one that is long already, or that is none, stays as it is."""
    match = _OVERRIDE.fullmatch(override)
    if match is None:
        return override
    names, op, rest = short_names(), match["op"] or "", match["rest"] or ""
    if match["head"] == "tune" and rest.startswith("=") and not rest.startswith("={"):
        return f"{op}tune.key{rest}"  # tune=optim.learning_rate
    if match["head"] not in names:
        return override
    if rest.startswith("."):
        return f"{op}{names[match['head']].replace('/', '.')}{rest}"
    entry = _PALETTE_ENTRY.match(rest)  # attention@ssm=…: an entry of the model's palette is below `model`
    if entry:
        rest = f"@{PARENT}.{entry['name']}{entry['rest'] or ''}"
    return f"{op}{names[match['head']]}{rest}"


def shorten(override: str) -> str:
    """The short form, for messages and directory names, where there is one."""
    match = _LONG.fullmatch(override)
    if match is None:
        return override
    short = f"{match['op'] or ''}{match['rest']}"
    entry = short.replace(f"@{PARENT}.", "@", 1)
    return next((s for s in (entry, short) if expand(s) == override), override)


def install() -> None:
    """Hook Hydra's override parser and its shell completion. Once is enough; more does no harm."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.plugins.completion_plugin import CompletionPlugin

    if getattr(OverridesParser, "_lmxexp_short_names", False):
        return
    parse = OverridesParser.parse_overrides
    query = CompletionPlugin._query

    def parse_overrides(self: OverridesParser, overrides: list[str]):
        parsed = parse(self, [expand(o) for o in overrides])
        for override in parsed:
            # Hydra names a point of a sweep by these lines: `attention=mha`, without a slash, is one directory.
            override.input_line = shorten(override.input_line or "")
        return parsed

    def _query(self: CompletionPlugin, config_name: str | None, line: str) -> list[str]:
        return complete(lambda text: query(self, config_name, text), self.config_loader.get_group_options, line)

    OverridesParser.parse_overrides = parse_overrides
    CompletionPlugin._query = _query
    OverridesParser._lmxexp_short_names = True  # pyright: ignore[reportAttributeAccessIssue]


def complete(query, group_options, line: str) -> list[str]:
    """What can follow ``line``: Hydra's answer for the long form, said in the form that the user types."""
    head, space, word = line.rpartition(" ")
    before = arguments.read(head.split())
    head = " ".join([*before.flags, *before.overrides])  # Hydra cannot read overrides on both sides of a flag
    bare = word.lstrip("+~")
    op = word[: len(word) - len(bare)]
    long = expand(word)
    if "@" in bare:  # Hydra does not complete the package form
        key = word.partition("=")[0]
        group = long.lstrip("+~").partition("@")[0]
        found = [f"{key}={kind}" for kind in group_options(group)] if "=" in word else []
        return sorted(f for f in found if f.startswith(word) and not _is_base(f))
    found = query(head + space + long)
    if long != word:
        found = [shorten(f) for f in found]
    elif not re.search(r"[.=/]", bare):
        found = [*found, *(f"{op}{name}=" for name in short_names() if name.startswith(bare))]
    return sorted({f for f in found if not _is_base(f)})


def _is_base(completion: str) -> bool:
    """``model=_base`` is what presets are made of, not a choice."""
    return "=_" in completion
