"""The built wheel, in an environment of its own, away from the checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_runs(tmp_path):
    """It carries conf/, trains, samples and knows its version."""

    def sh(*args, **kwargs):
        return subprocess.run([*map(str, args)], check=True, capture_output=True, text=True, cwd=tmp_path, **kwargs)

    sh(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT)
    wheel = next(tmp_path.glob("lmxexp-*.whl"))
    sh(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    sh(python, "-m", "pip", "install", "-q", f"{wheel}[cpu]", timeout=500)
    run = ["debug=default", "logger=[console,jsonl]", "hydra.run.dir=run"]
    out = sh(tmp_path / "venv" / "bin" / "lmxexp", *run, timeout=200)
    assert "everything is in run" in out.stdout
    assert sh(python, "-m", "lmxexp.sample", "run", "--max-tokens", "5", "--prompt", "def ").stdout.startswith("def ")
    assert "sliding" in sh(python, "-m", "lmxexp", "--help").stdout
    assert sh(python, "-m", "lmxexp", "--version").stdout.split()[1] in wheel.name
