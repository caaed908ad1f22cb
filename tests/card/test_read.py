"""From run directories to the figures of a card."""

import subprocess
import sys

import pytest

from lmxexp.card.read import Spread, read, spread
from lmxexp.interfaces import ConfigError
from tests.card.sweep import Sweep, measured


@pytest.fixture
def sweep(tmp_path):
    return Sweep(tmp_path / "my_card")


def test_scores_are_the_loss_of_text_and_the_accuracy_of_tasks(sweep):
    sweep.add("mha", "induction", 0.75)
    sweep.add("mha", "my_task", 0.25)
    sweep.add("mha", "mqar_128", 0.5)
    sweep.add("mha", "lm", 1.5)
    card = read([sweep.path])
    assert list(card.metrics) == ["lm", "mqar_128", "induction", "my_task"], "ours in order, then the user's"
    assert card.metrics["lm"] == "eval/loss"
    assert set(list(card.metrics.values())[1:]) == {"eval/accuracy"}
    (mixer,) = card.mixers
    assert mixer.label == "mha"
    assert {task: s.mean for task, s in mixer.scores.items()} == {
        "lm": 1.5, "mqar_128": 0.5, "induction": 0.75, "my_task": 0.25
    }  # fmt: skip
    assert mixer.params == 1003


def test_seeds_are_spread(sweep):
    for seed, value in ((1, 0.5), (2, 1.0), (3, 0.9)):
        sweep.add("mha", "copying", value, seed=seed, speeds=measured(seed))
    (mixer,) = read([sweep.path]).mixers
    assert mixer.scores["copying"] == Spread(pytest.approx(0.8), 0.5, 1.0, 3)
    assert mixer.curves["train_tokens_per_s"] == {
        64: Spread(pytest.approx(2000.0), 1000.0, 3000.0, 3),
        1024: Spread(pytest.approx(125.0), 62.5, 187.5, 3),
    }
    assert spread([2.0]) == Spread(2.0, 2.0, 2.0, 1)


def test_a_seed_that_was_run_twice_counts_once(sweep):
    sweep.add("mha", "copying", 0.5, started="1")
    sweep.add("mha", "copying", 0.7, started="2")
    assert read([sweep.path]).mixers[0].scores["copying"] == Spread(0.7, 0.7, 0.7, 1)


def test_mixers_are_in_the_order_of_the_sweep_and_curves_are_the_first_task_s(sweep):
    sweep.add("linear", "mqar_64", 0.5, speeds=measured(7.0))
    sweep.add("linear", "lm", 2.0, speeds=measured(2.0, (64, 256)))
    sweep.add("mha", "lm", 1.0, speeds=measured(1.0))
    card = read([sweep.path])
    assert [m.label for m in card.mixers] == ["linear", "mha"]
    assert card.lengths == [64, 256, 1024]
    assert card.mixers[0].curves["state_bytes"] == {64: Spread(128, 128, 128, 1), 256: Spread(512, 512, 512, 1)}


def test_what_failed_is_said_and_the_rest_stands(sweep):
    sweep.add("mha", "lm", 1.0, speeds=measured())
    sweep.add("mha", "copying", None, status="diverged", error="train/loss is nan at step 3")
    sweep.add("linear", "lm", None, status="before", error="ValueError: no such thing")
    sweep.add("linear", "copying", 0.5)
    card = read([sweep.path])
    by_label = {m.label: m for m in card.mixers}
    assert set(by_label) == {"mha", "linear"}
    assert set(by_label["mha"].scores) == {"lm"}
    assert set(by_label["linear"].scores) == {"copying"}
    assert "mha, task=copying, seed=1: diverged: train/loss is nan at step 3" in card.notes
    assert "linear, task=lm, seed=1: failed: ValueError: no such thing" in card.notes
    assert card.notes[-1].startswith("linear: no speeds")


def test_seeds_that_ended_alike_are_one_note(sweep):
    sweep.add("mha", "lm", 1.0, speeds=measured())
    for seed, error in ((1, "a"), (2, "b"), (3, "a")):
        sweep.add("mha", "copying", None, seed=seed, status="failed", error=error)
    assert read([sweep.path]).notes == [
        "mha, task=copying, seed=1,3: failed: a", "mha, task=copying, seed=2: failed: b"
    ]  # fmt: skip


def test_text_is_known_by_its_name_while_no_run_is_through(sweep):
    sweep.add("mha", "lm", None, status="diverged", error="nan")
    sweep.add("mha", "copying", 0.5)
    assert read([sweep.path]).metrics == {"lm": "eval/loss", "copying": "eval/accuracy"}


def test_a_sweep_of_which_nothing_is_finished(sweep):
    sweep.add("mha", "lm", None, status="diverged", error="nan")
    sweep.add("mha", "copying", None, status="diverged", error="nan")
    sweep.add("linear", "lm", None, status="before", error="ValueError: no")
    with pytest.raises(ConfigError, match="no run here is finished: 2 diverged: nan; 1 failed: ValueError: no"):
        read([sweep.path])


def test_command_and_machines_are_named(sweep, tmp_path):
    cpu = {"backend": "cpu", "name": "EPYC", "cpu_cores": 2}
    sweep.add("mha", "lm", 1.0, speeds=measured(), device=cpu)
    sweep.add("linear", "lm", 1.0, speeds=measured(), device=cpu)
    sweep.add("linear", "copying", 0.5, device={"backend": "metal", "name": "M4"})  # measured no speeds
    sweep.add("mha", "copying", 0.5)
    card = read([sweep.path])
    assert card.commands == ["python -m lmxexp -m of my_card"]
    assert card.machines == ["EPYC, 2 CPU cores"]
    assert card.notes == []
    other = Sweep(tmp_path / "other")
    other.add("mamba2", "lm", 1.0, speeds=measured(), device={"backend": "metal", "name": "M4", "cpu_cores": 8})
    other.add("mamba2", "copying", 1.0)
    card = read([sweep.path, other.path])
    assert card.commands == ["python -m lmxexp -m of my_card", "python -m lmxexp -m of other"]
    assert card.notes == ["speeds of different machines do not compare: EPYC, 2 CPU cores; M4, metal"]


def test_a_task_that_a_mixer_has_no_run_of(sweep):
    sweep.add("mha", "lm", 1.0, speeds=measured())
    sweep.add("mha", "copying", 0.5)
    sweep.add("linear", "lm", 1.0, speeds=measured())
    assert read([sweep.path]).notes == ["linear: no run of task=copying"]


def test_runs_that_differ_in_more_are_told_apart_or_refused(sweep):
    for position in ("rope", "none"):
        sweep.add("mha", "lm", 1.0, speeds=measured(), config={"model": {"position": position, "n_layers": 2}})
    with pytest.raises(
        ConfigError, match=r"task=lm differ in model\.position as well: --by attention,model\.position tells"
    ):
        read([sweep.path])
    labels = [m.label for m in read([sweep.path], ["attention", "model.position"]).mixers]
    assert labels == ["attention=mha model.position=rope", "attention=mha model.position=none"]


def test_folders_without_tasks_are_refused(sweep):
    sweep.add("mha", "lm", 1.0)
    with pytest.raises(ConfigError, match="--by task: the tasks are the columns"):
        read([sweep.path], ["task"])
    with pytest.raises(ConfigError, match="no such directory"):
        read([sweep.path / "nowhere"])
    run = next(sweep.path.glob("0_*"))
    for name in ("config.yaml", "run.json"):
        (run / name).write_text((run / name).read_text().replace("task", "tusk"))
    (sweep.path / "sweep.json").unlink()
    with pytest.raises(ConfigError, match=r"no run here has a task: .*experiment=card"):
        read([sweep.path])


def test_reading_needs_no_mlx(sweep):
    sweep.add("mha", "lm", 1.0, speeds=measured())
    code = (
        "import sys; from lmxexp.card.__main__ import main; "
        f"assert main([{str(sweep.path)!r}]) == 0; "
        "assert not [m for m in sys.modules if m.split('.')[0] in ('mlx', 'hydra', 'datasets', 'wandb')]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
