"""What the card is there to show: recall, where the state must hold all pairs."""

import pytest

import lmxexp


def accuracy(directory, attention, task):
    """Of the card's run, as the command makes it, without reports."""
    quiet = ["logger=[jsonl]", "callback=[evaluate]", "train.eval_every=0", "train.checkpoint_every=0"]
    cfg = lmxexp.compose(["experiment=card", f"task={task}", f"attention={attention}", "seed=1", *quiet])
    result = lmxexp.run(cfg, directory / f"{attention}_{task}")
    found = result.summary["eval/accuracy"]
    print(f"{attention} {task}: {100 * found:.1f} % in {result.summary['seconds']:.0f} s")
    return found


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_attention_recalls_and_a_fixed_state_falls_behind(tmp_path):
    """MQAR: attention 99 % at 64 tokens and 4 pairs; at 128 tokens and 8 pairs linear attention of the same width, with
    two matrices of 32 x 32 for a state, far behind it."""
    assert accuracy(tmp_path, "mha", "mqar_64") >= 0.99
    attention, fixed_state = (accuracy(tmp_path, name, "mqar_128") for name in ("mha", "linear"))
    assert attention >= 0.98
    assert fixed_state < attention - 0.3
