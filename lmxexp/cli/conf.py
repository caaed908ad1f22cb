"""Where the YAML files are, and what they say about themselves."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf


def conf_dir() -> Path:
    """Our configuration: ``lmxexp/conf`` in an installed wheel, ``conf`` beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "conf"
    return packaged if (packaged / "config.yaml").is_file() else package.parent / "conf"


def directories() -> list[Path]:
    """The directories on Hydra's search path, first wins; ours alone where Hydra has not started."""
    from hydra.core.global_hydra import GlobalHydra

    hydra = GlobalHydra.instance()
    if not hydra.is_initialized():
        return [conf_dir()]
    paths = [item.path or "" for item in hydra.config_loader().get_search_path().get_path()]
    plain = [Path(path.removeprefix("file://")) for path in paths if "://" not in path.removeprefix("file://")]
    return list(dict.fromkeys(path for path in plain if path.is_dir()))


def folders(directory: Path) -> list[str]:
    """The names of the sub-folders that can be groups."""
    if not directory.is_dir():
        return []
    return sorted(p.name for p in directory.iterdir() if p.is_dir() and not p.name.startswith(("_", ".")))


def is_group(key: str) -> bool:
    """Whether a slashed key, ``model/attention``, is a folder of some directory on the search path."""
    return any((root / key).is_dir() for root in directories())


def kinds(directory: Path, group: str) -> dict[str, Path]:
    """``{"gqa": …/gqa.yaml}`` of one group; a file whose name starts with ``_`` is a base, not a kind."""
    files = sorted((directory / group).glob("*.yaml"))
    return {file.stem: file for file in files if not file.name.startswith("_")}


def groups(directory: Path, below: str = "") -> Iterator[str]:
    """Every group with at least one kind, depth first: ``data``, ``model``, ``model/attention`` …"""
    for name in folders(directory / below):
        group = f"{below}/{name}" if below else name
        if kinds(directory, group):
            yield group
        yield from groups(directory, group)


def describe(file: Path) -> str:
    """The line that describes a kind: the first comment of its YAML that is no ``# @package`` header."""
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            if line.strip():
                break
            continue
        text = line.lstrip("# ").rstrip()
        if text and not text.startswith("@package"):
            return text
    return ""


def content(file: Path) -> DictConfig:
    """What a kind's YAML holds, with the kinds of its own group that it starts from (``defaults: [gqa, _self_]``)."""
    return _content(file, file.stat().st_mtime_ns)


@functools.cache
def _content(file: Path, changed: int) -> DictConfig:
    own = OmegaConf.load(file)
    assert isinstance(own, DictConfig)
    merged = OmegaConf.create({})
    for entry in own.pop("defaults", ["_self_"]):
        name, _, place = entry.partition("@") if isinstance(entry, str) else ("", "", "")
        if name == "_self_":
            merged = OmegaConf.merge(merged, own)
        elif name and (base := file.with_name(f"{name}.yaml")).is_file():
            merged = OmegaConf.merge(merged, {place: content(base)} if place else content(base))
    assert isinstance(merged, DictConfig)
    return merged


def shadowed(config_dir: Path) -> list[str]:
    """The files of ``--config-dir`` that have the name of one of ours: Hydra takes ours and says nothing."""
    ours = conf_dir()
    if config_dir.resolve() == ours.resolve():
        return []
    names = (file.relative_to(config_dir) for file in sorted(config_dir.rglob("*.yaml")))
    return [str(name) for name in names if (ours / name).is_file()]
