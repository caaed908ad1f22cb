"""``train.profile=true``: where a step's time goes, and that nothing else comes of it."""

import json

import mlx.core as mx
import mlx.nn as nn
import pytest
from matplotlib.image import imread

from lmxexp import compose, run
from lmxexp.build import build
from lmxexp.interfaces import ConfigError
from lmxexp.loss.cross_entropy import CrossEntropy
from lmxexp.model.attention.gqa import GroupedQueryAttention
from lmxexp.profile import capture, clock
from lmxexp.profile.part import Part
from lmxexp.train.settings import TrainSettings
from tests.end_to_end.processes import assert_same_run, lmxexp, small
from tests.pythonpath import PYTHONPATH

# Two steps are enough to see that they are the same, and plain ones do not wait for a C++ compiler.
SHORT = ["train.steps=2", "train.compile=false", "callback=[sample,checkpoint]"]
STEP = {"embedding", "mixer", "ffn", "norms", "final norm", "head and loss", "optimizer", "host to device"}


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(clock, "TOGETHER", 2e-3)


@pytest.fixture
def go(tmp_path):
    def go(name, *overrides):
        assert run(compose(small(tmp_path, *SHORT, *overrides)), tmp_path / name).status == "ok"
        return tmp_path / name

    return go


def read(directory):
    return json.loads((directory / "profile.json").read_text())


def parts(directory):
    """Rows by part and kind."""
    return {(row["part"], row["kind"]): row for row in read(directory)["parts"]}


DESIGNS = {
    "gqa, compiled": (["train.compile=true"], {"accumulation", "block"}),
    "mla, untied": (["attention=mla", "embedding=untied", "train.n_micro=1", "model.dropout=0"], set()),
    "mamba2": (["model=mamba2", "model.dropout=0"], {"accumulation"}),
    "hybrid with experts": (
        ["model=jamba", "model.n_layers=8", "train.n_micro=1"],
        {"block"},
    ),
    "several streams": (["block=hyper_connections"], {"accumulation", "block"}),
    "tokens beyond the next": (["model=deepseek_v3", "loss=multi_token"], {"accumulation", "block", "ahead"}),
    "an estimated curvature": (["optim=sophia", "train.n_micro=1"], {"block", "curvature"}),
    "mixed precision": (["train.precision=mixed", "position=learned"], {"accumulation", "block"}),
}


@pytest.mark.parametrize("design", DESIGNS)
def test_every_part_is_there_and_the_run_is_the_same(go, design):
    """Bit for bit: weights, optimizer, random state (there is dropout) and metrics."""
    overrides, further = DESIGNS[design]
    profiled = go("profiled", *overrides, "train.profile=true")
    content = read(profiled)
    expected = (STEP | further) - ({"ffn"} if design == "mamba2" else set())
    assert {row["part"] for row in content["parts"]} == expected
    assert content["other"] == {}
    for row in content["parts"]:
        assert row["ms"] > 0 or row["part"] in ("norms", "final norm", "block", "embedding"), row
    assert {row["part"] for row in content["beside"]} == {"data", "logging"}
    assert_same_run(profiled, go("plain", *overrides))


def test_layers_are_counted_by_kind(go):
    found = parts(go("run", "model=jamba", "model.n_layers=8", "train.profile=true"))
    assert found["mixer", "Mamba1"]["layers"] == [0, 1, 2, 3, 5, 6, 7]
    assert found["mixer", "GroupedQueryAttention"]["layers"] == [4]
    assert found["ffn", "MixtureOfExperts"]["layers"] == [1, 3, 5, 7]
    assert found["mixer", "Mamba1"]["calls"] == 7 * 2, "two micro-batches"
    assert found["norms", "RMSNorm"]["calls"] == 16 * 2


def test_layers_that_see_less_are_a_kind_of_their_own(go):
    rows = read(go("run", "model=gemma3", "model.n_layers=6", "train.profile=true"))["parts"]
    assert [row["layers"] for row in rows if row["part"] == "mixer"] == [[0, 1, 2, 3, 4], [5]]


def test_the_files_agree(go):
    directory = go("run", "train.profile=true")
    content = read(directory)
    rows = [*content["parts"], content["remainder"]]
    assert sum(row["ms"] for row in rows) == pytest.approx(content["step_ms"])
    assert sum(row["forward_ms"] or 0 for row in rows) == pytest.approx(content["forward_ms"])
    assert sum(row["backward_ms"] or 0 for row in rows) == pytest.approx(content["backward_ms"])
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    record = json.loads((directory / "run.json").read_text())
    assert sum(row["forward_flops"] for row in rows) == content["forward_flops"] == record["flops_per_token"] * 64 // 3
    page = (directory / "profile.md").read_text()
    for row in rows:
        assert f"| {row['part']} | {row['kind']} |" in page
        assert f"| {row['ms']:.4g} | {row['share']:.1%} |" in page or abs(row["ms"]) < 0.001
    assert f"| {content['step_ms']:.4g} | 100.0% |" in page
    assert imread(directory / "profile.png").shape[1] == 1200


class Slow(GroupedQueryAttention):
    """Computes its queries over and over."""

    def __call__(self, x, **kwargs):
        for _ in range(80):
            x = x + 1e-3 * mx.tanh(self.q_proj(x))
        return super().__call__(x, **kwargs)


@pytest.mark.parametrize("dtype", [None, mx.bfloat16])
def test_a_backward_pass_is_beside_a_whole_forward_pass(dtype, tmp_path):
    """No gradient needs what a last product gives: left out, its time would be taken off the backward pass."""
    layer, x = nn.Linear(6, 4, bias=False), mx.ones((5, 6))
    part = Part("ffn", "", (0,), 1, layer, layer.trainable_parameters(), x, {}, lambda x, _: [layer(x)])
    (y,) = part.outputs(part.params, x, {}, dtype)
    mx.eval(y)  # or its own product would be counted
    mx.export_to_dot(str(tmp_path / "graph.dot"), *part.gradients(part.params, x, {}, [y], dtype))
    assert (tmp_path / "graph.dot").read_text().count('"Matmul"') == 3


def test_a_slow_part_is_seen_in_its_row(go):
    settings = ["train.profile=true", "model.d_model=64", "train.seq_len=64", "train.n_micro=1", "model.n_kv_heads=2"]
    settings += ["train.batch_size=8"]
    usual = parts(go("usual", *settings))
    slow = parts(go("slow", *settings, f"model.attention._target_={__name__}.Slow"))
    ratio = lambda part, before, after: slow[part, after]["ms"] / usual[part, before]["ms"]
    assert ratio("mixer", "GroupedQueryAttention", "Slow") > 4
    assert ratio("ffn", "GatedLinearUnit", "GatedLinearUnit") < 3
    assert slow["mixer", "Slow"]["share"] > max(0.5, 1.2 * usual["mixer", "GroupedQueryAttention"]["share"])


class Peeking(CrossEntropy):
    """A loss that asks for more than a hidden state."""

    def __call__(self, model, batch):
        model(batch.inputs)
        return super().__call__(model, batch)


def test_what_cannot_be_isolated_is_named_with_the_reason(go):
    directory = go("run", "train.profile=true", f"loss._target_={__name__}.Peeking")
    content = read(directory)
    assert set(content["other"]) == {"head and loss"}
    assert "not callable" in content["other"]["head and loss"]
    assert {row["part"] for row in content["parts"]} >= STEP - {"head and loss"}
    assert "- head and loss: TypeError" in (directory / "profile.md").read_text()


def test_a_resumed_run_is_profiled_where_it_goes_on(tmp_path):
    overrides = small(tmp_path, *SHORT, "train.steps=4", "callback.checkpoint.every=2")
    assert run(compose(overrides), tmp_path / "whole").status == "ok"
    assert run(compose(overrides), tmp_path / "run", until=2).status == "paused"
    again = compose([*overrides, "train.profile=true", f"resume={tmp_path / 'run'}"])
    assert run(again).status == "ok"
    assert read(tmp_path / "run")["at_step"] == 2
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"profile_capture": "a.gputrace"}, "train.profile_capture=a.gputrace is taken by the profile"),
        ({"profile": True, "profile_capture": "a.txt"}, "must be a file that ends in .gputrace"),
    ],
)
def test_captures_that_would_come_to_nothing_are_refused(settings, said):
    plain = build(compose([]).train)
    with pytest.raises(ConfigError, match=said):
        TrainSettings(**{**vars(plain), **settings})


class FakeMetal:
    def __init__(self, available=True, error=None):
        self.available, self.error, self.calls = available, error, []

    def is_available(self):
        return self.available

    def start_capture(self, path):
        if self.error:
            raise RuntimeError(self.error)
        self.calls.append(path)

    def stop_capture(self):
        self.calls.append("stop")


@pytest.mark.parametrize(
    ("metal", "variable", "exists", "said"),
    [
        (FakeMetal(), "1", False, None),
        (FakeMetal(available=False), "1", False, "MLX has no Metal here"),
        (FakeMetal(), "", False, "Metal asks for MTL_CAPTURE_ENABLED=1"),
        (FakeMetal(), "1", True, "such a file already"),
        (FakeMetal(error="[metal::start_capture] no\n device"), "1", False, "[metal::start_capture] no device"),
    ],
)
def test_a_capture_or_one_message(monkeypatch, caplog, tmp_path, metal, variable, exists, said):
    path = tmp_path / "step.gputrace"
    if exists:
        path.mkdir()  # a capture is a directory
    monkeypatch.setattr(capture.mx, "metal", metal)
    monkeypatch.setenv("MTL_CAPTURE_ENABLED", variable)
    work = []
    assert capture.capture(path, lambda: work.append(1)) == (said is None) == bool(work)
    assert [record.getMessage() for record in caplog.records if said and said in record.getMessage()] == [
        record.getMessage() for record in caplog.records
    ]
    assert len(caplog.records) == (said is not None)
    assert metal.calls == ([str(path), "stop"] if said is None else [])


def test_as_a_process(tmp_path):
    env = {"OPENBLAS_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONPATH": PYTHONPATH}
    settings = small(tmp_path, "train.steps=2", "callback=[sample]", "logger=[console,jsonl]", "hydra.run.dir=run")
    capture_to = "train.profile_capture=step.gputrace"
    done = lmxexp(*settings, "train.profile=true", capture_to, cwd=tmp_path, **env)
    assert done.returncode == 0, done.stderr
    assert {f.name for f in (tmp_path / "run").glob("profile.*")} == {"profile.md", "profile.json", "profile.png"}
    lines = done.stdout.splitlines()
    assert any(line.split()[:2] == ["mixer", "GroupedQueryAttention"] for line in lines)
    assert any(line.split()[:2] == ["whole", "step"] for line in lines)
    if not mx.metal.is_available():
        assert (done.stdout + done.stderr).count("no capture is taken") == 1


def test_a_population_refuses(tmp_path):
    env = {"OPENBLAS_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONPATH": PYTHONPATH}
    together = ["hydra/launcher=population", "hydra.launcher.force=true", "seed=1,2", "sweep=s"]
    done = lmxexp("-m", *small(tmp_path, "train.profile=true", *together), cwd=tmp_path, **env)
    assert done.returncode != 0
    assert "train.profile=true: hydra/launcher=population" in done.stderr


def test_the_stage_of_a_ramp_that_the_run_is_in(go):
    run = go("run", "ramp=batch_size", "ramp.start=2", "train.steps=40", "train.n_micro=auto", "train.profile=true")
    about = read(run)
    assert (about["batch_size"], about["n_micro"]) == (2, 1)
    whole = json.loads((run / "run.json").read_text())
    assert whole["n_micro"] == 1
    assert about["forward_flops"] * 3 == pytest.approx(
        whole["flops_per_token"] * about["batch_size"] * about["seq_len"], rel=0.01
    )
