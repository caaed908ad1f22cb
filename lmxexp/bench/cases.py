"""From the command line to the cases that are measured, each a checked configuration."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from lmxexp import device
from lmxexp.cli.errors import did_you_mean, refuse
from lmxexp.cli.short_names import expand
from lmxexp.cli.validate import check
from lmxexp.compose import compose
from lmxexp.describe import USUAL_VOCABULARY
from lmxexp.train import precision

PRECISIONS = ("auto", "fp32", "bf16", "mixed")

BYTE_SIZES = ("tiny", "10m", "50m")
"""Sizes that are counted with a byte vocabulary."""

ON_CPU = {"size": "tiny", "batch_size": 16, "seq_len": 128, "steps": 4}
ON_GPU = {"size": "124m", "batch_size": 32, "seq_len": 1024, "steps": 20}
"""What is measured unless told otherwise: a step of each takes well below a second."""

_KEYS = {
    "size": "model/size",
    "attention": "model/attention",
    "optim": "optim",
    "precision": "train.precision",
    "batch_size": "train.batch_size",
    "seq_len": "train.seq_len",
}
"""The override that each option stands for."""

_NOT_READ = (
    *("callback", "logger", "match", "task", "hydra", "hparams_search", "name", "tags", "sweep", "tune", "resume"),
    *("branch", "ramp"),
)
_READ_OF_TRAIN = ("batch_size", "seq_len", "n_micro", "remat", "precision", "max_grad_norm", "compile")


@dataclass(frozen=True)
class Case:
    """One configuration whose step is measured."""

    name: str
    """``llama size=tiny attention=gqa optim=adamw fp32``."""
    cfg: DictConfig
    vocab_size: int
    precision: str
    """Resolved: fp32, bf16 or mixed."""


def cases_of(
    overrides: Sequence[str] = (),
    *,
    config_dir: str | None = None,
    vocab_size: int | None = None,
    batch_size: int | None = None,
    seq_len: int | None = None,
    **axes: Sequence[str] | None,
) -> list[Case]:
    """All combinations of the axes, composed and checked.

    Args:
        overrides: as of ``python -m lmxexp``, of every case.
        config_dir: the user's own kinds.
        vocab_size: V; None: 256 up to size 50m, 50,257 beyond.
        batch_size: B; None: the overrides', or the device's usual.
        seq_len: L; likewise.
        axes: ``size``, ``attention``, ``optim``, ``precision``: values to go through; None: the overrides', or the
            usual.

    Raises:
        ConfigError: a setting that cannot work, one that would be ignored, or one that is given twice.
    """
    on_gpu = device.is_gpu()
    usual = ON_GPU if on_gpu else ON_CPU
    options: dict[str, Any] = {**axes, "batch_size": batch_size, "seq_len": seq_len}
    keys = [expand(o).lstrip("+~").split("=")[0] for o in overrides]
    _check_options(options, keys)
    _check_read(overrides, keys)
    given = list(overrides)
    if "experiment" not in keys:  # which says what it is about
        for name in ("size", "batch_size", "seq_len"):
            if options.get(name) is None and _KEYS[name] not in keys:
                options[name] = [usual[name]] if name == "size" else usual[name]
        if not any(key.split(".")[0] == "schedule" for key in keys):
            # Without a warmup, so that the first steps change the weights and a peer's optimizer can be checked.
            given += ["schedule=constant", "schedule.warmup_steps=0"]
    found: dict[str, Case] = {}
    for chosen in itertools.product(*(_values(options.get(name)) for name in _KEYS)):
        of_case = [f"{key}={value}" for key, value in zip(_KEYS.values(), chosen, strict=True) if value is not None]
        cfg = compose([*of_case, *given], config_dir)
        check(cfg, [*of_case, *overrides])
        case = _case(cfg, vocab_size, on_gpu)
        found.setdefault(case.name, case)  # auto may be one of the others
    return list(found.values())


def _case(cfg: DictConfig, vocab_size: int | None, on_gpu: bool) -> Case:
    choice, resolved = cfg.choice, precision.resolve(cfg.train.precision, on_gpu=on_gpu)
    kinds = " ".join(f"{key}={choice[key]}" for key in ("size", "attention", "optim") if choice.get(key))
    usual = 256 if choice.get("size") in BYTE_SIZES else USUAL_VOCABULARY
    return Case(f"{choice.get('model')} {kinds} {resolved}", cfg, vocab_size or usual, resolved)


def _values(option: Any) -> list[Any]:
    return list(option) if isinstance(option, list | tuple) else [option]


def _check_options(options: dict[str, Any], keys: list[str]) -> None:
    problems = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is not None and _KEYS[name] in keys:
            problems.append(f"{flag} and the override {_KEYS[name]} both say it: leave one of them out")
        if name in ("batch_size", "seq_len") and value is not None and value < 1:
            problems.append(f"{flag}={value} must be at least 1")
    for value in options.get("precision") or ():
        if value not in PRECISIONS:
            close = did_you_mean(value, PRECISIONS)
            problems.append(f"--precision={value} must be one of {', '.join(PRECISIONS)}{close}")
    if problems:
        refuse(problems)


def _check_read(overrides: Sequence[str], keys: list[str]) -> None:
    problems = []
    for override, key in zip(overrides, keys, strict=True):
        root, _, rest = key.replace("/", ".").replace("@", ".").partition(".")
        if root in ("data", "tokenizer"):
            problems.append(f"{override}: tokens are random here; --vocab says of how many kinds")
        elif root == "train" and rest and rest not in _READ_OF_TRAIN:
            read = ", ".join(_READ_OF_TRAIN)
            problems.append(f"{override}: the training step alone is measured, which reads of train: {read}")
        elif root in _NOT_READ:
            problems.append(
                f"{override}: the training step alone is measured, which does not read {root}: leave it out"
            )
    if problems:
        refuse(problems)
