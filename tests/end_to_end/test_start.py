"""What a run loads before it trains."""

import ast
import os
import subprocess
import sys

from tests.end_to_end.processes import TIMEOUT, small

HEAVY = (
    "datasets",
    "matplotlib",
    "pandas",
    "plotly",
    "pyarrow",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
    "wandb",
)


def test_a_run_imports_nothing_heavy_that_it_does_not_use(tmp_path):
    code = (
        "import sys; from lmxexp.__main__ import main; code = main(sys.argv[1:]); "
        f"print(sorted(set({HEAVY}) & {{name.split('.')[0] for name in sys.modules}})); sys.exit(code)"
    )
    overrides = small(tmp_path, "train.steps=2", "train.n_micro=1", "model.n_layers=1", "logger=[console,jsonl]")
    command = [sys.executable, "-c", code, *overrides]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    assert ast.literal_eval(done.stdout.splitlines()[-1]) == []
