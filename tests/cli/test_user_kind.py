"""A kind of the user's: a class in a module of theirs, a YAML in a directory of theirs, and nothing of ours touched."""

import json

MODULE = '''
import mlx.core as mx
import mlx.nn as nn


class NoCache:
    """What a mixer without memory keeps."""

    def __init__(self):
        self.offset = 0
        self.state = []


class RunningMean(nn.Module):
    """Each position sees the mean of all before it."""

    def __init__(self, d_model: int, strength: float = 1.0, layer_idx: int = 0):
        super().__init__()
        self.o_proj = nn.Linear(d_model, d_model, bias=False)
        self.strength = strength

    def __call__(self, x, *, cache=None, segment_ids=None):
        count = mx.arange(1, x.shape[1] + 1)[None, :, None].astype(x.dtype)
        return self.o_proj(mx.cumsum(x, axis=1) / count) * self.strength

    def make_cache(self):
        return NoCache()

    def state_size(self, seq_len):
        return 0

    def mixing_flops(self, seq_len):
        return 2
'''

YAML = """\
# Mean of everything so far.
_target_: my_kinds.mixers.RunningMean
_partial_: true
strength: 0.5
"""

SMALL = ["train.steps=3", "train.batch_size=2", "train.seq_len=16", "data.max_eval_tokens=512", "logger=[jsonl]"]
ONLY_TRAIN = ["callback=[evaluate]", "hydra.run.dir=run"]


def test_it_trains_is_listed_and_is_checked_like_ours(lmxexp, tmp_path):
    (tmp_path / "my_kinds").mkdir()
    (tmp_path / "my_kinds" / "mixers.py").write_text(MODULE)
    (tmp_path / "my_conf" / "model" / "attention").mkdir(parents=True)
    (tmp_path / "my_conf" / "model" / "attention" / "mean.yaml").write_text(YAML)
    mine = ["--config-dir", "my_conf", "attention=mean"]

    code, out = lmxexp(*mine, *SMALL, *ONLY_TRAIN)
    assert code == 0, out
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "my_kinds.mixers.RunningMean" in config
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 3
    assert json.loads((tmp_path / "run" / "run.json").read_text())["choices"]["attention"] == "mean"

    code, out = lmxexp("--help", "--config-dir", "my_conf")
    assert code == 0
    assert "Mean of everything so far." in out

    code, out = lmxexp(*mine, "attention.strength=high", "position=alibi")
    assert code == 1
    assert "model.attention.strength=high: expected float, got text" in out
    assert "position=alibi would be ignored" in out
