"""The command line in this process, with a stand-in for training: what is tested here ends where training begins."""

import json
import logging
import os
import subprocess
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hydra.core.singleton import Singleton
from omegaconf import DictConfig, OmegaConf

from lmxexp.__main__ import main
from lmxexp.identity import identity
from lmxexp.sweep.prepare import Preparation
from tests.pythonpath import PYTHONPATH


@dataclass
class Result:
    """As much of `lmxexp.run.RunResult` as the command line reads."""

    run_dir: Path
    status: str = "ok"
    score: float = 1.5
    signal: int | None = None
    summary: dict = field(default_factory=dict)


@dataclass
class CommandLine:
    """Runs command lines; ``runs`` are the configurations that reached training."""

    capsys: pytest.CaptureFixture
    runs: list[DictConfig] = field(default_factory=list)
    argvs: list[list[str]] = field(default_factory=list)
    behave: object = None
    """``(cfg, run_dir) -> Result``, to fail or stop."""
    out: str = ""
    err: str = ""

    def __call__(self, *argv: str) -> int:
        code = main(list(argv))
        self.out, self.err = self.capsys.readouterr()
        return code

    def run_steps(self, cfg: DictConfig, run_dir: Path, until: int | None = None, side_by_side: bool = False):
        yield from ()  # it asks for no steps
        return self.run(cfg, run_dir, until)

    def run(self, cfg: DictConfig, run_dir: Path, until: int | None = None) -> Result:
        self.runs.append(cfg)
        self.argvs.append(list(sys.argv))
        # What a run leaves for `resume`.
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        identity = OmegaConf.select(cfg, "sweep.identity")
        (run_dir / "run.json").write_text(json.dumps({"identity": identity}))
        (run_dir / ".hydra").mkdir(exist_ok=True)
        OmegaConf.save(cfg, run_dir / ".hydra" / "config.yaml")
        OmegaConf.save(cfg, run_dir / "config.yaml", resolve=True)
        return self.behave(cfg, run_dir) if callable(self.behave) else Result(run_dir)


@pytest.fixture
def cli(monkeypatch, tmp_path, capsys):
    """`CommandLine` in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LMXEXP_OUTPUTS", raising=False)
    line = CommandLine(capsys)
    stand_in = types.ModuleType("lmxexp.run")
    stand_in.run, stand_in.run_steps = line.run, line.run_steps
    monkeypatch.setitem(sys.modules, "lmxexp.run", stand_in)
    # Of a sweep's points, what needs data and models to be built.
    monkeypatch.setattr(
        Preparation, "identity", lambda self, cfg, config=None: identity(OmegaConf.to_container(cfg, resolve=True), "")
    )
    monkeypatch.setattr(Preparation, "try_out", lambda self, cfg, config=None: None)
    instances, path, handlers = dict(Singleton._instances), list(sys.path), list(logging.getLogger().handlers)
    yield line
    Singleton._instances.clear()
    Singleton._instances.update(instances)
    sys.path[:] = path
    logging.getLogger().handlers[:] = handlers


@pytest.fixture
def lmxexp(tmp_path):
    """``python -m lmxexp`` in a process of its own, in an empty directory: ``(exit code, output)``."""

    def call(*argv: str, env: dict[str, str] | None = None, cwd: Path = tmp_path, module: str = "lmxexp"):
        done = subprocess.run(
            [sys.executable, "-m", module, *argv],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": PYTHONPATH, "WANDB_MODE": "disabled", **(env or {})},
            capture_output=True,
            text=True,
            timeout=240,
        )
        return done.returncode, done.stdout + done.stderr

    return call
