"""The files of a run's directory, beside its checkpoints and what loggers write."""

import json
import os
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from lmxexp.interfaces import ConfigError
from lmxexp.logger.jsonl import FILE_NAME, read_metrics

_writing = threading.Lock()
"""The thread that hears of another rank's death writes as well."""

_SafeDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # PyYAML may be without its C library


def new_run_dir(cfg: DictConfig) -> Path:
    """A name for the directory of a new run, as ``conf/hydra/default.yaml`` makes it on the command line."""
    now = time.time()
    clock = time.localtime(now)
    outputs = os.environ.get("LMXEXP_OUTPUTS", "outputs")
    name = f"{time.strftime('%H-%M-%S', clock)}-{int(now % 1 * 1e6):06d}_{cfg.name}"
    return Path(outputs) / "runs" / time.strftime("%Y-%m-%d", clock) / name


def load_config(run_dir: Path) -> DictConfig:
    """The resolved configuration of the run in a directory.

    Raises:
        ConfigError: the directory is missing or holds no run.
    """
    _require_run(run_dir)
    cfg = OmegaConf.load(run_dir / "config.yaml")
    assert isinstance(cfg, DictConfig)
    return cfg


def load_record(run_dir: Path) -> dict[str, Any]:
    """``run.json``; raises as `load_config` does."""
    _require_run(run_dir)
    return json.loads((run_dir / "run.json").read_text())


def logged(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; none where that logger was not chosen."""
    file = run_dir / FILE_NAME
    return read_metrics(file) if file.exists() else []


class _Dumper(_SafeDumper):
    """Writes what `OmegaConf.load` reads back, in a fifth of the time that `OmegaConf.to_yaml` takes."""


# To PyYAML the text 1e-3 is no number and needs no quotes; to OmegaConf's loader it is one.
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?$"), list("-+.0123456789")
)


def to_yaml(config: DictConfig | Mapping[str, Any]) -> str:
    """A configuration as text, with its interpolations where it has any."""
    plain = OmegaConf.to_container(config, enum_to_str=True) if isinstance(config, DictConfig) else dict(config)
    return yaml.dump(plain, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)


def save_config(unresolved: str, config: Mapping[str, Any], directory: Path) -> None:
    """``config.yaml``, resolved, and ``.hydra/config.yaml`` with its interpolations, from which a run is resumed."""
    (directory / ".hydra").mkdir(exist_ok=True)
    _write(directory / ".hydra" / "config.yaml", unresolved)
    _write(directory / "config.yaml", to_yaml(config))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one piece."""
    _write(path, json.dumps(content, indent=1, default=str) + "\n")


def _require_run(run_dir: Path) -> None:
    if not (run_dir / "config.yaml").is_file() or not (run_dir / "run.json").is_file():
        raise ConfigError(f"{run_dir} is not the directory of a run: it has no config.yaml and run.json")


def _write(path: Path, text: str) -> None:
    """Write a file in one piece: whoever reads it meanwhile sees the old one or the new one."""
    with _writing:
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
