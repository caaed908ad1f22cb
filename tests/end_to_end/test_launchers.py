"""Launchers of ours and of published plugins: the same sweep, the same numbers, and what a killed process leaves."""

import pytest

from tests.end_to_end.tiny_sweeps import points, sweep, table, with_kinds

LAUNCHERS = {
    "subprocess": (None, "hydra.launcher.n_jobs=2"),
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "hydra.launcher.n_jobs=2"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "hydra.launcher.timeout_min=5"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "+hydra.launcher.ray.init.num_cpus=2"),
}
"""The module that the plugin brings, and a setting."""


def chosen(launcher: str) -> list[str]:
    """What chooses a launcher; skips the test where its plugin is not installed."""
    module, setting = LAUNCHERS[launcher]
    if module is not None:
        pytest.importorskip(module, reason=f"needs the plugin for hydra/launcher={launcher}")
    return [f"hydra/launcher={launcher}", setting]


def pids(sweep_dir):
    """The process of the sweep, and those that ran its points."""
    return (sweep_dir / ".lock").read_text(), {file.read_text() for file in sweep_dir.glob("*/.lock")}


@pytest.fixture(scope="module")
def in_process(tmp_path_factory):
    """A sweep of two points, one after the other in its own process."""
    place = tmp_path_factory.mktemp("in_process")
    done = sweep(place, "seed=1,2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [p["status"] for p in points(place)] == ["ok", "ok"]
    conductor, workers = pids(place / "outputs" / "sweeps" / "s")
    assert workers == {conductor}
    return place


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_points_give_the_table_of_a_sweep_in_process_bit_for_bit(in_process, launcher, tmp_path):
    done = sweep(tmp_path, "seed=1,2", *chosen(launcher))
    assert done.returncode == 0, done.stdout + done.stderr
    assert table(tmp_path) == table(in_process)
    conductor, workers = pids(tmp_path / "outputs" / "sweeps" / "s")
    assert conductor not in workers, "the points ran elsewhere"


@pytest.mark.parametrize(
    ("launcher", "reason", "at_most"),
    [
        # It ends its other workers, too: whoever was at work with the one that was killed is a row like it.
        ("joblib", "SIGKILL", 2),
        # It gives up at once, while the other goes on.
        ("submitit_local", "has not produced any output", 1),
    ],
)
def test_a_killed_worker_leaves_a_row_and_the_same_command_finishes(in_process, launcher, reason, at_most, tmp_path):
    command = ["attention=killed_once", "seed=1,2", *chosen(launcher)]
    with_kinds(tmp_path)
    if launcher == "submitit_local":  # it would look 15 seconds for a result
        with (tmp_path / "my_kinds.py").open("a") as file:
            file.write("\nimport submitit.core.core\n\nsubmitit.core.core.Job._results_timeout_s = 1\n")
    done = sweep(tmp_path, *command)
    assert done.returncode == 1
    rows = points(tmp_path)
    killed = [p for p in rows if p["status"] == "killed"]
    assert {p["status"] for p in rows} <= {"killed", "ok"}, done.stdout + done.stderr
    assert 1 <= len(killed) <= at_most
    assert all(reason in p["reason"] for p in killed)
    assert "killed" in done.stdout.partition("reason")[0], "said when it happened"
    done = sweep(tmp_path, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert table(tmp_path) == table(in_process)
