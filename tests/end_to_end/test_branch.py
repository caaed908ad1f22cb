"""A run that branches off another's checkpoint is, bit for bit, the run that was planned so from its beginning."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from omegaconf import OmegaConf

from lmxexp import compose, run
from lmxexp.identity import identity
from lmxexp.interfaces import ConfigError
from lmxexp.train import checkpoint
from tests.end_to_end.processes import deterministic, lmxexp, small
from tests.end_to_end.test_bad_input import fails
from tests.end_to_end.test_resume import stop_at

COMMON = ["schedule.warmup_steps=2", "train.keep=9"]
CONSTANT = ["schedule=constant", "train.steps=16", *COMMON]
COOLDOWN = ["schedule=cooldown", "schedule.cooldown_steps=4"]
WSD = ["schedule=wsd", "schedule.decay_fraction=0.34", *COMMON]
"""Of 12 steps the last 4 are the cooldown, of 20 the last 7."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("branch")


@pytest.fixture(scope="module")
def long(directory):
    """A run at a constant learning rate, with checkpoints of steps 4, 8, 12 and 16."""
    return run(compose(small(directory, *CONSTANT)), directory / "long").run_dir


def files(run_dir: Path) -> dict[Path, tuple[bytes, int]]:
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in run_dir.rglob("*") if p.is_file()}


def assert_ends_as(branch: Path, whole: Path, after: int) -> None:
    """The same lines after the step, and the same weights, optimizer, random state and text at the end."""
    expected = [line for line in deterministic(whole) if line["step"] > after]
    assert deterministic(branch) == expected
    assert expected
    saved = [checkpoint.read(checkpoint.newest(d / "checkpoints")) for d in (branch, whole)]
    states = [{k: v for k, v in s.state.items() if k != "run_id"} for s in saved]
    assert states[0] == states[1]
    for name in ("model", "optimizer"):
        left, right = (s.load(name) for s in saved)
        assert left.keys() == right.keys()
        for path, array in left.items():
            assert mx.array_equal(array, right[path]).item(), f"{name}: {path}"
    samples = [(d / "samples.txt").read_text().split("--- step ")[-1] for d in (branch, whole)]
    assert samples[0] == samples[1]


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="to the bit on the CPU")
@pytest.mark.parametrize(
    ("settings", "schedule"),
    [
        (["optim=adamw"], ["schedule.shape=sqrt"]),
        (["optim=muon", "train.precision=mixed"], ["schedule.shape=cosine", "schedule.final=0.1"]),
        (["optim=lion", "attention=gated_deltanet"], ["schedule.shape=exponential", "schedule.final=0.01"]),
        (["optim=sgd"], ["schedule.shape=mirror_cosine", "schedule.final=0.3"]),
    ],
)
def test_a_cooldown_equals_the_whole_run(settings, schedule, tmp_path):
    long = run(compose(small(tmp_path, *CONSTANT, *settings)), tmp_path / "long").run_dir
    whole = run(compose(small(tmp_path, *WSD, *settings, *schedule)), tmp_path / "whole").run_dir
    branch = run(compose([f"branch={long}", "branch.step=8", *COOLDOWN, *schedule]), tmp_path / "branch")
    assert (branch.status, branch.summary["step"]) == ("ok", 12)
    assert_ends_as(branch.run_dir, whole, after=8)
    rates = [line["train/lr"] for line in deterministic(branch.run_dir)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1], "it cooled down"


def test_from_the_command_line(long, directory):
    """Processes of their own; the long run is left as it was, and the new one says where it comes from."""
    before = files(long)
    done = lmxexp("branch=long", "branch.step=8", *COOLDOWN, "hydra.run.dir=cool", cwd=directory)
    assert done.returncode == 0, done.stderr
    assert lmxexp(*small(directory, *WSD), "hydra.run.dir=whole", cwd=directory).returncode == 0
    assert files(long) == before
    assert_ends_as(directory / "cool", directory / "whole", after=8)
    record, origin = (json.loads((d / "run.json").read_text()) for d in (directory / "cool", long))
    assert record["branch"] == {"run": str(long), "identity": origin["identity"], "step": 8}
    assert record["run_id"] != origin["run_id"]
    assert record["identity"] not in (origin["identity"], None)
    assert record["resumed"] == []
    config = OmegaConf.load(directory / "cool" / "config.yaml")
    assert (config.resume, config.train.steps, config.schedule.start, config.schedule.factor) == (None, 12, 8, 1.0)
    assert config.branch == {"path": str(long), "step": 8, "identity": origin["identity"], "factor": 1.0}
    assert config.choice.schedule == "cooldown"


def test_the_newest_checkpoint_and_a_directory_of_its_own(long, directory, monkeypatch):
    monkeypatch.chdir(directory)
    done = lmxexp("branch=long", *COOLDOWN, "name=a/b c", cwd=directory, LMXEXP_OUTPUTS="made")
    assert done.returncode == 0, done.stderr
    [run_dir] = [p.parent for p in (directory / "made" / "runs").rglob("run.json")]
    assert run_dir.name.endswith("_a-b c")
    assert [line["step"] for line in deterministic(run_dir)] == [17, 18, 19, 20]
    assert json.loads((run_dir / "run.json").read_text())["branch"]["step"] == 16


def test_from_the_stable_phase_of_a_wsd_run(long, directory, tmp_path):
    """Up to the step at which its own cooldown starts; and with other numbers of steps any schedule goes on."""
    wsd = run(compose(small(directory, *WSD, "train.steps=20", "schedule.shape=linear")), tmp_path / "wsd").run_dir
    whole = run(compose(small(directory, *WSD, "schedule.shape=linear")), tmp_path / "whole").run_dir
    settings = [f"branch={wsd}", "branch.step=8"]
    branch = run(compose([*settings, *COOLDOWN, "schedule.shape=linear"]), tmp_path / "branch").run_dir
    assert_ends_as(branch, whole, after=8)
    other = run(compose([*settings, "train.steps=12"]), tmp_path / "other").run_dir
    assert_ends_as(other, whole, after=8)
    longer = run(compose([f"branch={long}", "train.steps=20"]), tmp_path / "longer").run_dir
    assert [line["step"] for line in deterministic(longer)] == [17, 18, 19, 20]


def test_from_a_learning_rate_that_is_not_the_peak(directory, tmp_path):
    """From half of the peak down."""
    root = ["schedule=inverse_sqrt", "schedule.warmup_steps=2", "train.keep=9", "optim.learning_rate=1e-3"]
    long = run(compose(small(directory, *root)), tmp_path / "long").run_dir
    cfg = compose([f"branch={long}", "branch.step=8", *COOLDOWN, "schedule.shape=linear"])
    factor = (3 / 9) ** 0.5
    assert cfg.branch.factor == pytest.approx(factor)
    branch = run(cfg, tmp_path / "branch").run_dir
    rates = [line["train/lr"] for line in deterministic(branch)]
    assert rates == pytest.approx([1e-3 * factor * part for part in (1, 0.75, 0.5, 0.25)])


def test_a_branch_that_was_stopped_goes_on(long, tmp_path):
    settings = [f"branch={long}", "branch.step=4", "schedule=cooldown", "schedule.cooldown_steps=8"]
    whole = run(compose(settings), tmp_path / "whole").run_dir
    part = run(compose([*settings, stop_at(6)]), tmp_path / "part")
    assert (part.status, part.summary["step"]) == ("stopped", 6)
    assert run(compose([f"resume={part.run_dir}"])).status == "ok"
    assert_ends_as(part.run_dir, whole, after=4)
    record = json.loads((part.run_dir / "run.json").read_text())
    assert (record["branch"]["step"], [r["step"] for r in record["resumed"]]) == (4, [6])
    with pytest.raises(ConfigError, match=r"branch\.step=8: branch\.step was 4 in"):
        compose([f"resume={part.run_dir}", "branch.step=8"])
    longer = ["train.steps=14", "schedule.cooldown_steps=10"]
    assert run(compose([f"resume={part.run_dir}", *longer])).summary["step"] == 14


def test_a_branch_that_was_killed_before_its_first_checkpoint_starts_over(long, tmp_path):
    """At the branch, not at the beginning; afterwards it has no need of the long run."""
    origin = shutil.copytree(long, tmp_path / "long")
    settings = [f"branch={origin}", "branch.step=4", *COOLDOWN]
    whole = run(compose(settings), tmp_path / "whole").run_dir
    killed = shutil.copytree(whole, tmp_path / "killed")
    shutil.rmtree(killed / "checkpoints")
    (killed / "summary.json").unlink()
    shutil.move(origin, tmp_path / "away")
    with pytest.raises(ConfigError, match=r"branch=.*: its checkpoint of step 4, which this run starts from, is gone"):
        run(compose([f"resume={killed}"]))
    shutil.move(tmp_path / "away", origin)
    assert run(compose([f"resume={killed}"])).status == "ok"
    assert_ends_as(killed, whole, after=4)
    shutil.rmtree(origin)
    longer = [f"resume={killed}", "train.steps=10", "schedule.cooldown_steps=6"]
    assert run(compose(longer)).summary["step"] == 10


def test_identity(long, tmp_path):
    """A branch is another run than its origin, than other steps' branches, and wherever the origin lies the same."""
    of = lambda *settings: identity(OmegaConf.to_container(compose(list(settings)), resolve=True), "data")
    eight = of(f"branch={long}", "branch.step=8", "schedule=cooldown", "schedule.cooldown_steps=4")
    moved = shutil.copytree(long, tmp_path / "moved")
    assert of(f"branch={moved}", "branch.step=8", "schedule=cooldown", "schedule.cooldown_steps=4") == eight
    others = [
        of(f"branch={long}", "branch.step=4", "schedule=cooldown", "schedule.cooldown_steps=4"),
        of(f"branch={long}", "branch.step=4", "schedule=cooldown", "schedule.cooldown_steps=8"),
        of(f"branch={long}", "branch.step=8", "train.steps=12"),
        of(f"branch={long}", "train.steps=20"),
        of(*small(tmp_path, *CONSTANT)),
    ]
    assert len({eight, *others}) == 6
    config = OmegaConf.to_container(compose(small(tmp_path)), resolve=True)
    without = {key: value for key, value in config.items() if key != "branch"}
    assert identity(config, "data") == identity(without, "data"), "as it was before there were branches"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            ["branch.step=7", *COOLDOWN],
            ("branch.step=7: ", "no checkpoint of step 7, only of 4, 8, 12, 16", "train.keep"),
        ),
        (["branch.step=0", *COOLDOWN], ("branch.step=0: expected", "branch.step=1000")),
        (["branch.step=last", *COOLDOWN], ("branch.step=last: expected",)),
        (["schedule=cooldown"], ("schedule.cooldown_steps is missing", "schedule.cooldown_steps=…")),
        (["schedule=cooldown", "schedule.cooldown_steps=0"], ("schedule.cooldown_steps=0 must be at least 1",)),
        (["schedule=cooldown", "schedule.cooldown_steps=-4"], ("schedule.cooldown_steps=-4 must be at least 1",)),
        (["schedule=cooldown", "schedule.cooldown_steps=half"], ("schedule.cooldown_steps=half: expected int",)),
        ([*COOLDOWN, "train.steps=30"], ("schedule.cooldown_steps=4", "train.steps=30: set train.steps=20, or")),
        ([*COOLDOWN, "schedule.final=1.0"], ("schedule.final=1.0 must be below",)),
        (["train.log_every=2"], ("train.steps=16: the run starts at step 16", "raise train.steps")),
        ([*COOLDOWN, "model.d_model=64"], ("model.d_model=64: model.d_model was 32", "without branch")),
        ([*COOLDOWN, "attention=mha"], ("attention=mha: attention was gqa", "without branch")),
        ([*COOLDOWN, "tokenizer=char"], ("tokenizer=char: tokenizer was byte", "without branch")),
        ([*COOLDOWN, "data=python_stdlib"], ("data=python_stdlib: data was text", "without branch")),
        ([*COOLDOWN, "train.seq_len=8"], ("data.seq_len was 16", "without branch")),
        ([*COOLDOWN, "optim=lion"], ("optim=lion: optim was adamw", "without branch")),
        ([*COOLDOWN, "seed=3"], ("seed=3: seed was 1", "without branch")),
        ([*COOLDOWN, "train.step=3"], ("train.step=3: no such key", "train.steps")),
    ],
)
def test_bad_settings(settings, says, long, tmp_path):
    """One message with key, value and mend; nothing is trained, and the long run is left as it was."""
    before = files(long)
    message = refused(tmp_path, f"branch={long}", *settings)
    for words in says:
        assert words in message
    assert files(long) == before


def refused(tmp_path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        run(compose(list(overrides)), tmp_path / "refused")
    assert not (tmp_path / "refused" / "metrics.jsonl").exists()
    return str(raised.value)


def test_bad_command_lines(long, tmp_path):
    before = files(long)
    branch = f"branch={long}"
    fails(tmp_path, branch, "branch.step=7", *COOLDOWN, says=("branch.step=7", "no checkpoint of step 7, only of 4, 8"))
    fails(
        tmp_path, branch, "schedule=cooldown", "schedule.cooldown_steps=0", says="cooldown_steps=0 must be at least 1"
    )
    fails(
        tmp_path, branch, "schedule=cooldown", says=("schedule.cooldown_steps is missing", "schedule.cooldown_steps=…")
    )
    fails(tmp_path, branch, *COOLDOWN, "train.step=3", says=("train.step=3: no such key", "did you mean train.steps?"))
    fails(tmp_path, branch, *COOLDOWN, "schedule.finl=0", says=("schedule.finl", "did you mean"))
    fails(tmp_path, branch, *COOLDOWN, f"resume={long}", says=("resume=", "give one of them"))
    fails(tmp_path, branch, *COOLDOWN, f"hydra.run.dir={long}", says=("hydra.run.dir=", "another directory"))
    fails(tmp_path, branch, *COOLDOWN, "-m", says=("branch=", "leave --multirun out"))
    assert not list(tmp_path.rglob("metrics.jsonl"))
    assert files(long) == before


def test_no_run_to_branch_off(long, directory, tmp_path):
    (tmp_path / "foreign").mkdir()
    young = shutil.copytree(long, tmp_path / "young", ignore=shutil.ignore_patterns("step_*"))
    for settings, says in {
        (f"branch={tmp_path}/nowhere",): "nowhere: there is no such directory",
        (f"branch={tmp_path}/foreign",): "foreign: no run that could go on",
        ("branch.step=8", *small(directory)): "branch.step=8: say of which run, branch=RUN_DIR",
        (*small(directory), *COOLDOWN): "schedule=cooldown goes down from where another run stands: say which, branch",
        (f"branch={young}", *COOLDOWN): "it has no checkpoint to start from: go on with it first, resume=",
    }.items():
        assert says in refused(tmp_path, *settings)
    assert list((tmp_path / "foreign").iterdir()) == []


def test_branching_off_after_the_cooldown_has_begun(directory, tmp_path):
    wsd = run(compose(small(directory, *WSD)), tmp_path / "wsd").run_dir
    cosine = run(compose(small(directory, "schedule=cosine", *COMMON)), tmp_path / "cosine").run_dir
    message = refused(tmp_path, f"branch={wsd}", *COOLDOWN)
    assert f"branch.step=12: the learning rate of {wsd} goes down from step 8 on (schedule=wsd)" in message
    assert message.endswith("branch.step=8")
    message = refused(tmp_path, f"branch={cosine}", "branch.step=4", *COOLDOWN)
    assert f"branch.step=4: the learning rate of {cosine} goes down from step 2 on (schedule=cosine)" in message
    assert message.endswith("branch off at step 2 at the latest; it has none")


def test_other_data_and_another_model_under_the_same_configuration(directory, tmp_path):
    """What the configuration does not show: an edited text, and weights of other shapes."""
    long = run(compose(small(tmp_path, *CONSTANT)), tmp_path / "long").run_dir
    text = tmp_path / "bottles.txt"
    before = text.read_text()
    text.write_text(before.replace("e", "a", 1))
    cfg = compose([f"branch={long}", *COOLDOWN])
    with pytest.raises(ConfigError, match=r"branch=.*: the data has changed since the run began .* restore the text"):
        run(cfg, tmp_path / "other_data")
    text.write_text(before)
    cfg = compose([f"branch={long}", *COOLDOWN])
    cfg.model.d_model = 64
    with pytest.raises(ConfigError, match=r"model\.safetensors is of another run"):
        run(cfg, tmp_path / "other_model")
    assert not list(tmp_path.glob("other_*/metrics.jsonl"))


def test_the_branch_of_a_sweeps_point_is_a_run_by_itself(directory, tmp_path):
    settings = small(tmp_path, *CONSTANT, "train.checkpoint_every=8", "hydra.sweep.dir=sweep")
    done = lmxexp("-m", *settings, "optim.learning_rate=1e-3,2e-3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    points = sorted(p.parent for p in (tmp_path / "sweep").glob("*/run.json"))
    assert len(points) == 2
    done = lmxexp(f"branch={points[1]}", *COOLDOWN, "hydra.run.dir=cool", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = OmegaConf.load(tmp_path / "cool" / "config.yaml")
    assert "sweep" not in config
    assert config.optim.learning_rate == 2e-3
