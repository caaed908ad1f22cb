"""What only a process of its own shows: what is imported, how long it takes, what the shell is told."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pythonpath import PYTHONPATH

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("mlx", "datasets", "wandb", "matplotlib", "tokenizers", "torch", "rich", "pandas", "numpy")


def test_showing_a_configuration_is_quick_and_imports_nothing_heavy(tmp_path):
    code = (
        "import sys, lmxexp.__main__ as m\n"
        "code = m.main(['--cfg', 'job', 'attention=mha'])\n"
        f"print('HEAVY', [n for n in {HEAVY} if n in sys.modules], file=sys.stderr)\n"
        "sys.exit(code)"
    )
    env = {**os.environ, "PYTHONPATH": PYTHONPATH}
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    after = os.times()
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stderr
    assert "n_kv_heads: ${model.n_heads}" in done.stdout
    # Processor time: the clock would measure what else the machine does, too.
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 1.5
    assert list(tmp_path.iterdir()) == []


def test_import_is_cheap():
    code = f"import sys, lmxexp; sys.exit(str([n for n in (*{HEAVY}, 'hydra') if n in sys.modules] or '') or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_exit_codes_reach_the_shell(lmxexp):
    code, out = lmxexp("attention=gqq")
    assert code == 1
    assert "did you mean gqa?" in out
    assert "Traceback" not in out


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_short_names_and_the_users_kinds(tmp_path):
    """Through the script that ``lmxexp -sc install=bash`` prints, as the shell would call it."""
    folder = tmp_path / "my" / "model" / "attention"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# Mine.\n_target_: x.Y\n")
    command = tmp_path / "bin" / "lmxexp"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lmxexp "$@"\n')
    command.chmod(0o755)
    script = tmp_path / "ask.sh"
    script.write_text(
        'eval "$(lmxexp -sc install=bash)"\n'
        'for line in "$@"; do\n'
        '  COMP_LINE="$line"; COMP_POINT=${#line}; COMP_WORDS=($line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))\n'
        "  COMPREPLY=(); hydra_bash_completion; "
        'echo "$line > ${COMPREPLY[*]}"\n'
        "done\ncomplete -p lmxexp\n"
    )
    asked = {
        "lmxexp att": "attention=",
        "lmxexp --config-dir my attention=mi": "attention=mine",
        "lmxexp model=gpt -m model/attention=gq": "model/attention=gqa",
        "lmxexp attention=sliding attention.reach.wi": "attention.reach.window=",
        "lmxexp softcap@score_softcap=n": "softcap@score_softcap=none",
    }
    done = subprocess.run(
        ["bash", str(script), *asked],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[:-1] == [f"{line} > {answer}" for line, answer in asked.items()], done.stderr
    assert "-F hydra_bash_completion lmxexp" in done.stdout


def test_the_console_script_finds_modules_in_the_current_directory(tmp_path):
    """`python -m` has the current directory on its path; the command has not, of itself."""
    (tmp_path / "my_module.py").write_text("")
    code = (
        "import sys, os; sys.path = [p for p in sys.path if p not in ('', os.getcwd())]\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from lmxexp.__main__ import main; main(['--version']); import my_module"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
