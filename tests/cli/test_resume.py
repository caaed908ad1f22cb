import shutil

import pytest
from omegaconf import OmegaConf

import lmxexp
from lmxexp.cli import resume
from lmxexp.compose import started
from lmxexp.interfaces import ConfigError

START = ["attention=sliding", "attention.reach.window=7", "train.steps=20", "seed=5", "logger=[jsonl]"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's directory, as training leaves it; in a directory with the characters that sweeps use."""
    directory = tmp_path_factory.mktemp("sweep") / "3_attention=sliding,seed=5"
    cfg = lmxexp.compose(START)
    (directory / "checkpoints").mkdir(parents=True)
    (directory / "run.json").write_text("{}")
    (directory / ".hydra").mkdir()
    (directory / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    (directory / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    return directory


@pytest.fixture(scope="module")
def fresh():
    """What Hydra composes where nothing is chosen."""
    return lmxexp.compose()


@pytest.fixture
def run_dir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "runs" / finished.name)


def files(directory):
    return {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_it_goes_on_with_its_own_configuration_in_its_own_directory(cli, run_dir, tmp_path):
    before = files(run_dir)
    assert cli(f"resume={run_dir}") == 0, cli.err
    [cfg] = cli.runs
    assert (cfg.model.attention.reach.window, cfg.seed, cfg.train.steps, cfg.resume) == (7, 5, 20, str(run_dir))
    assert (cfg.choice.attention, cfg.choice.logger, cfg.name) == ("sliding", "jsonl", "llama-sliding")
    assert "n_kv_heads" in cfg.model.attention
    assert OmegaConf.to_container(cfg, resolve=False)["schedule"]["steps"] == "${train.steps}"
    assert list(tmp_path.iterdir()) == [run_dir.parent], "no other directory"
    after = files(run_dir)
    log = run_dir / "lmxexp.log"
    rewritten = tuple(run_dir / file for file in (".hydra/config.yaml", "config.yaml", "run.json"))  # by the run
    assert {k: v for k, v in after.items() if k not in (log, *rewritten)} == {
        k: v for k, v in before.items() if k not in rewritten
    }
    assert cli.argvs[0][1:] == [f"resume={run_dir}"], "the record tells what was typed"


def test_values_are_laid_on_top_and_remembered(cli, run_dir, monkeypatch):
    monkeypatch.chdir(run_dir.parent)
    typed = ["train.steps=50", "callback.sample.max_tokens=9", "tags=[x]", "debug.traceback=true"]
    assert cli(f"resume={run_dir.name}", *typed) == 0, cli.err
    [cfg] = cli.runs
    assert OmegaConf.to_container(cfg, resolve=True)["schedule"]["steps"] == 50
    assert (cfg.callback.sample.max_tokens, cfg.tags, cfg.debug.traceback) == (9, ["x"], True)
    assert cli(f"resume='{run_dir}'") == 0, cli.err
    assert cli.runs[1].train.steps == 50


def test_a_command_line_can_be_repeated(cli, run_dir):
    repeated = [*START, "model=llama", "model/norm=rmsnorm", "experiment=null", "optim=adamw"]
    assert cli(f"resume={run_dir}", *repeated) == 0, cli.err
    assert cli.runs[0].model.attention.reach.window == 7


def test_where_to_report_may_be_chosen_anew(cli, run_dir):
    assert cli(f"resume={run_dir}", "logger=[jsonl,console]", "callback=[memory]", "schedule=constant") == 0, cli.err
    [cfg] = cli.runs
    assert list(cfg.logger) == ["jsonl", "console"]
    assert list(cfg.callback) == ["memory"]
    assert (cfg.choice.logger, cfg.choice.callback, cfg.choice.schedule) == ("jsonl+console", "memory", "constant")
    assert "Constant" in cfg.schedule._target_
    assert cfg.model.attention.reach.window == 7


def test_debug_counts_as_the_values_in_it(cli, run_dir):
    assert cli(f"resume={run_dir}", "debug=none") == 0, cli.err
    assert cli.runs[0].debug.traceback is False


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["attention=mha"], "attention=mha: attention was sliding in"),
        (["model/norm=layernorm"], "norm=layernorm: norm was rmsnorm in"),
        (["~attention"], "~attention: attention was sliding"),
        (["experiment=nanogpt_shakespeare"], "experiment was null in"),
        (["attention.reach.window=8"], "attention.reach.window=8: model.attention.reach.window was 7 in"),
        (["seed=6"], "seed=6: seed was 5 in"),
        (["data.seed=77"], "data.seed was 5 in"),
        (["train.seq_len=64"], "train.seq_len=64: data.seq_len was 128 in"),
        (["~model.dropout"], "model.dropout"),
        (["train.step=5"], "train.step=5: no such key in the run's configuration; did you mean train.steps?"),
        (["train.steps=1,2"], "several values cannot go with resume"),
        (["hydra.run.dir=elsewhere"], "leave hydra.run.dir out"),
        (["train.steps=[1"], "train.steps=[1"),
        (["attention=mha", "optim=lion"], "optim was adamw in"),
        (["attention=mha", "optim=lion"], "attention was sliding in"),
        (["debug=default"], "data.max_eval_tokens was"),
        (["debug=defalt"], "debug=defalt: no such kind; did you mean default?"),
    ],
)
def test_what_would_make_it_another_run_is_refused(finished, fresh, typed, said):
    with started(), pytest.raises(ConfigError) as raised:
        resume.plan([f"resume={finished}", *typed]).configuration(fresh)
    assert said in str(raised.value)


def test_what_is_refused_leaves_everything_as_it_was(cli, run_dir, tmp_path):
    before = files(run_dir)
    for typed, said in {
        "seed=6": "seed=6: seed was 5 in",
        "logger=[jsonl,wadb]": "did you mean wandb?",
        "-m": "continues one run: leave --multirun out",
    }.items():
        assert cli(f"resume={run_dir}", typed) == 1
        assert said in cli.err
    assert cli.runs == []
    log = run_dir / "lmxexp.log"
    assert {k: v for k, v in files(run_dir).items() if k != log} == before
    assert list(tmp_path.iterdir()) == [run_dir.parent]


def test_directories_that_hold_no_run_are_left_alone(cli, run_dir, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "runs" / "half").mkdir()
    shutil.copy(run_dir / "config.yaml", tmp_path / "runs" / "half" / "config.yaml")
    for text, said in {
        "nowhere": "resume=nowhere: there is no such directory",
        str(run_dir).replace("sliding", "slidng"): f"did you mean {run_dir}?",
        "empty": "it has no config.yaml and no run.json; give the directory of a run",
        "runs": f"did you mean runs/{run_dir.name}?",
        "runs/half": "it has no run.json",
    }.items():
        assert cli(f"resume={text}") == 1
        assert said in cli.err
    assert not any(empty.iterdir())
    assert not (tmp_path / "nowhere").exists()
    assert len(list((tmp_path / "runs" / "half").iterdir())) == 1
    assert not (tmp_path / "outputs").exists()
    assert cli.runs == []


@pytest.mark.parametrize("content", ["a: [", "- 1\n- 2\n", "lr: 0.1\n", "\x00\xff"])
def test_a_configuration_that_is_not_ours_is_refused(cli, run_dir, content):
    (run_dir / "config.yaml").write_text(content)
    assert cli(f"resume={run_dir}") == 1
    assert f"resume={run_dir}: its con" in cli.err
    assert "Traceback" not in cli.err
    assert len(cli.err.strip().splitlines()) == 1


def test_a_run_from_a_notebook_has_a_resolved_configuration_only(cli, run_dir):
    shutil.rmtree(run_dir / ".hydra")
    assert cli(f"resume={run_dir}", "train.log_every=3") == 0, cli.err
    assert cli.runs[0].train.log_every == 3


def test_it_works_from_a_notebook(run_dir):
    cfg = lmxexp.compose([f"resume={run_dir}", "train.steps=30"])
    assert (cfg.model.attention.reach.window, cfg.train.steps, cfg.resume) == (7, 30, str(run_dir))
    with pytest.raises(ConfigError, match="seed was 5"):
        lmxexp.compose([f"resume={run_dir}", "seed=1"])


def test_no_resume_is_a_new_run(cli):
    assert cli("resume=null", "train.steps=3") == 0, cli.err
    assert cli.runs[0].resume is None
