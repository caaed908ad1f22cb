from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmxexp.interfaces import RunInfo


@pytest.fixture
def make_info(tmp_path: Path) -> Callable[..., RunInfo]:
    def make(directory: str = "run", **changes: Any) -> RunInfo:
        run_dir = tmp_path / directory
        run_dir.mkdir(exist_ok=True)
        values: dict[str, Any] = {
            "run_dir": run_dir,
            "run_id": "abc123",
            "name": "llama-gqa",
            "config": {"seed": 1, "train": {"_target_": "lmxexp.train.trainer.Trainer", "steps": 20}},
            "choices": {"model": "llama", "attention": "gqa"},
            "record": {"params": 1234, "device": {"kind": "cpu"}},
            "total_steps": 20,
        }
        return RunInfo(**values | changes)

    return make


@pytest.fixture
def wandb_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a W&B account and with an empty home directory, which is returned."""
    home = tmp_path / "home"
    home.mkdir()
    for name in list(os.environ):
        if name.startswith("WANDB_") or name == "NETRC":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    return home
