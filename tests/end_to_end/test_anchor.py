"""nanoGPT's documented CPU setting, end to end."""

import json
import os

import pytest

from tests.end_to_end.processes import lmxexp

TEXT = os.environ.get("LMXEXP_TINYSHAKESPEARE")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not TEXT, reason="LMXEXP_TINYSHAKESPEARE does not name a copy of tinyshakespeare.txt")
def test_nanogpt_shakespeare_cpu(tmp_path):
    """Five seeds of the original in PyTorch: 1.9039 +- 0.0105 over the whole validation split; three standard
    deviations either way."""
    done = lmxexp(
        "experiment=nanogpt_shakespeare_cpu",
        f"data.path={TEXT}",
        "hydra.run.dir=run",
        "logger=[jsonl]",
        cwd=tmp_path,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["params"] == 804_096
    assert record["data"]["train_tokens"] == 1_003_854
    assert record["data"]["validation_tokens"] == 111_540
    assert record["vocab_size"] == 65
    print(f"nanoGPT CPU anchor: eval/loss {summary['eval/loss']:.4f}, {summary['perf/tokens_per_s']:.0f} tokens/s")
    assert 1.872 <= summary["eval/loss"] <= 1.936
