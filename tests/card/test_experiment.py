"""``experiment=card`` and its tasks, as a user gives them."""

from pathlib import Path

import pytest

import lmxexp
from lmxexp.card.read import TASKS, read
from lmxexp.cli.validate import check
from lmxexp.data.build import build_source

CONF = Path(__file__).parents[2] / "conf"


def test_the_experiment_sweeps_every_task_and_the_card_knows_all():
    """What is not swept would be missing, and what the card does not know would come last."""
    import yaml

    files = {file.stem for file in (CONF / "task").glob("*.yaml")}
    content = yaml.safe_load((CONF / "experiment" / "card.yaml").read_text())
    assert set(content["hydra"]["sweeper"]["params"]["task"].split(",")) == files == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_works_with_any_model_and_leaves_its_size_alone(task):
    sizes = {"model=mamba2": 128, "size=10m": 384, "experiment=card": 64}
    for overrides, width in sizes.items():
        cfg = lmxexp.compose([overrides, f"task={task}"])
        check(cfg, [overrides, f"task={task}"])
        assert (cfg.choice.task, cfg.model.d_model) == (task, width)


def test_what_a_task_sets_can_be_overridden():
    cfg = lmxexp.compose(["experiment=card", "task=mqar_64", "train.steps=3", "data.n_pairs=2", "model.d_model=32"])
    assert (cfg.train.steps, cfg.data.n_pairs, cfg.model.d_model) == (3, 2, 32)


@pytest.mark.parametrize("task", [task for task in TASKS if task != "lm"])
def test_nothing_that_is_evaluated_is_trained_on(task):
    """Every batch of a run, as the task configures it."""
    cfg = lmxexp.compose(["experiment=card", f"task={task}"])
    source = build_source(cfg)
    evaluated = {row.tobytes() for b in source.eval_batches() for row in b.inputs[b.weights.any(axis=1)]}
    assert len(evaluated) == cfg.data.n_eval, "no two alike"
    for index in range(cfg.train.steps):
        assert evaluated.isdisjoint(row.tobytes() for row in source.batch(index).inputs)


def test_speed_is_measured_once_a_mixer():
    with_speed = [t for t in TASKS if "speed" in lmxexp.compose(["experiment=card", f"task={t}"]).callback]
    assert with_speed == ["lm"]


def test_every_mixer_stands_in_the_same_place():
    for attention in ("mha", "gated_deltanet", "linear"):
        cfg = lmxexp.compose(["experiment=card", f"attention={attention}"])
        model = lmxexp.build_model(cfg, vocab_size=32)
        kinds = [type(layer.self_attn).__module__.rpartition(".")[2] for layer in model.layers]
        assert kinds == ["short_conv", {"mha": "gqa"}.get(attention, attention)]


def test_runs_become_a_card(tmp_path):
    """Tiny, but through the real runner, from the sweep's settings to the table."""
    small = ["experiment=card", "train.steps=2", "train.batch_size=2", "train.compile=false", "logger=[jsonl]"]
    small += ["model.d_model=16", "train.checkpoint_every=0"]
    for attention in ("mha", "linear"):
        for task in TASKS:
            cut = ["data.max_eval_tokens=64"]
            if task == "lm":
                cut += ["callback.speed.lengths=[8,16]", "callback.speed.tokens=16", "callback.speed.decode_tokens=2"]
            cfg = lmxexp.compose([*small, *cut, f"attention={attention}", f"task={task}"])
            assert lmxexp.run(cfg, tmp_path / f"{attention}_{task}").status == "ok"
    card = read([tmp_path])
    assert card.notes == []
    assert [m.label for m in card.mixers] == ["linear", "mha"]
    assert list(card.metrics) == list(TASKS)
    assert card.metrics["lm"] == "eval/loss"
    for mixer in card.mixers:
        assert set(mixer.scores) == set(TASKS)
        assert mixer.scores["lm"].mean == pytest.approx(5.5, abs=0.3), "nats of 256 bytes, nearly untrained"
        assert set(mixer.curves) == {"train_tokens_per_s", "decode_tokens_per_s", "state_bytes", "train_peak_gb"}
    linear, mha = (mixer.curves["state_bytes"] for mixer in card.mixers)
    assert linear[8].mean == linear[16].mean
    # Keys and values, 16 wide, of 8 more positions, 4 bytes each: the convolution's state does not grow.
    assert mha[16].mean - mha[8].mean == 2 * 16 * 8 * 4
