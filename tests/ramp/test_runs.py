"""Runs with a ramp: what they log and record, resumed, branched off, longer, matched."""

import copy
import json
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from lmxexp import compose, run
from lmxexp.build import build
from lmxexp.callback.throughput import Throughput
from lmxexp.data.build import build_source
from lmxexp.describe import describe
from lmxexp.identity import identity
from lmxexp.interfaces import ConfigError, Stage
from lmxexp.sweep import step_time
from lmxexp.sweep.budget import Budgets
from lmxexp.sweep.match import Candidate, Match, solve
from lmxexp.sweep.prepare import Preparation, resolved
from lmxexp.train.progress import StepClock
from tests.end_to_end.processes import assert_same_run, deterministic, lmxexp, small
from tests.end_to_end.test_branch import assert_ends_as
from tests.end_to_end.test_resume import RESUME_ALL, stop_at

ROOT = Path(__file__).resolve().parents[2]
RAMPS = {
    "batch_size": ["ramp=batch_size", "ramp.start=1", "ramp.until=0.67"],
    "seq_len": ["ramp=seq_len", "ramp.start=4", "ramp.until=0.5"],
}
"""Of 12 steps with 4 sequences of 16 tokens: from steps 4 and 8 on, and from 3 and 6 on, they grow."""
SIZES = {"batch_size": [1] * 4 + [2] * 4 + [4] * 4, "seq_len": [4] * 3 + [8] * 3 + [16] * 6}
TOKENS = {"batch_size": [16 * n for n in SIZES["batch_size"]], "seq_len": [64] * 12}
"""Of each step."""
SAID = {"batch_size": "batch size 1 → 2 → 4 at steps 4, 8", "seq_len": "sequence length 4 → 8 → 16 at steps 3, 6"}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def wholes(text):
    """Uninterrupted runs, with dropout and gradient accumulation."""
    return {grows: run(compose(small(text, *own)), text / f"whole_{grows}").run_dir for grows, own in RAMPS.items()}


@pytest.mark.parametrize("grows", RAMPS)
def test_what_a_run_leaves(grows, text):
    """From the command line, proven against the uncompiled step first."""
    done = lmxexp(
        *small(text, *RAMPS[grows], "logger=[console,jsonl]", "train.self_test=true", "hydra.run.dir=" + grows),
        cwd=text,
    )
    assert done.returncode == 0, done.stderr
    assert SAID[grows] in done.stdout
    lines = deterministic(text / grows)
    assert [line[f"train/{grows}"] for line in lines] == SIZES[grows]
    assert [line["tokens"] for line in lines] == [sum(TOKENS[grows][: i + 1]) for i in range(12)]
    assert not {"train/batch_size", "train/seq_len"} - {f"train/{grows}"} & set(lines[0])
    record = json.loads((text / grows / "run.json").read_text())
    assert record["ramp"] == SAID[grows]
    summary = json.loads((text / grows / "summary.json").read_text())
    assert summary["tokens"] == sum(TOKENS[grows])
    cfg = compose(small(text, *RAMPS[grows]))
    model = build(cfg.model.net)(vocab_size=256)
    lengths = SIZES[grows] if grows == "seq_len" else [16] * 12
    flops = sum(n * model.flops_per_token(length) for n, length in zip(TOKENS[grows], lengths, strict=True))
    assert record["flops_per_token"] == flops // sum(TOKENS[grows])
    assert describe(cfg).ramp == SAID[grows]


@pytest.mark.parametrize("grows", RAMPS)
def test_stopped_within_the_ramp_and_resumed_it_is_the_same_run(grows, text, wholes, tmp_path):
    """In another process, after step 5: within a stage, and of a growing batch within a batch of the source."""
    part = run(compose([*small(text, *RAMPS[grows]), stop_at(5)]), tmp_path / "part")
    assert (part.status, part.signal, part.summary["step"]) == ("stopped", signal.SIGTERM, 5)
    assert part.summary["tokens"] == sum(TOKENS[grows][:5])
    subprocess.run([sys.executable, "-c", RESUME_ALL, str(part.run_dir)], cwd=ROOT, check=True, timeout=250)
    assert_same_run(part.run_dir, wholes[grows])


@pytest.mark.parametrize("grows", RAMPS)
def test_every_ramp_trains_on_what_it_says(grows, text, wholes):
    """And evaluates as without one."""
    source = build_source(compose(small(text)))
    assert next(iter(source.eval_batches())).inputs.shape == (4, 16)
    plain = run(compose(small(text, "train.steps=1")), text / f"plain_{grows}").run_dir
    losses = [deterministic(d)[0]["train/loss"] for d in (wholes[grows], plain)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("grows", RAMPS)
def test_more_steps_keep_the_ramp(grows, text, tmp_path):
    """A fraction of more steps would be another ramp, and what the steps so far have used up another place in the
    data."""
    constant = [*RAMPS[grows], "schedule=constant"]
    short = run(compose(small(text, *constant)), tmp_path / "run").run_dir
    again = compose([f"resume={short}", "train.steps=15"])
    assert (again.train.steps, again.ramp.steps) == (15, 12)
    assert run(again).status == "ok"
    whole = run(compose(small(text, *constant, "train.steps=15", "ramp.steps=12")), tmp_path / "whole").run_dir
    assert deterministic(short)[-3:] == deterministic(whole)[-3:]
    for changed in ("ramp.until=0.6", "ramp.start=2", "ramp.steps=15"):
        with pytest.raises(ConfigError, match=rf"{changed}: ramp\..* was .* start a new run, without resume"):
            compose([f"resume={short}", changed])
    with pytest.raises(ConfigError, match=f"ramp=none: ramp was {grows} in"):
        compose([f"resume={short}", "ramp=none"])


@pytest.mark.parametrize("grows", RAMPS)
def test_a_cooldown_off_a_ramp(grows, text, tmp_path):
    """From before the ramp's end, it goes on with it: as the run that was planned so."""
    common = ["schedule.warmup_steps=2", "train.keep=9", *RAMPS[grows]]
    long = run(compose(small(text, "schedule=constant", *common)), tmp_path / "long").run_dir
    cfg = compose([f"branch={long}", "branch.step=4", "schedule=cooldown", "schedule.cooldown_steps=6"])
    assert (cfg.train.steps, cfg.ramp.steps) == (10, 12)
    branch = run(cfg, tmp_path / "branch").run_dir
    wsd = ["schedule=wsd", "schedule.decay_fraction=0.6", "train.steps=10", "ramp.steps=12"]
    whole = run(compose(small(text, *common, *wsd)), tmp_path / "whole").run_dir
    assert_ends_as(branch, whole, after=4)
    assert [line[f"train/{grows}"] for line in deterministic(branch)] == SIZES[grows][4:10]


def test_a_run_from_before_there_were_ramps_goes_on(text, tmp_path):
    """Its configuration has no such node, and it stays the run that it is."""
    cfg = compose(small(text))
    with_it = resolved(cfg)
    without = {k: v for k, v in with_it.items() if k != "ramp"}
    assert identity(with_it, "data") == identity(without, "data")
    ramped = [identity(resolved(compose(small(text, *own))), "data") for own in RAMPS.values()]
    assert len({*ramped, identity(without, "data")}) == 3
    part = run(compose([*small(text), stop_at(5)]), tmp_path / "old").run_dir
    for file in part.rglob("config.yaml"):
        old = OmegaConf.load(file)
        del old["ramp"], old["choice"]["ramp"]
        OmegaConf.save(old, file)
    again = compose([f"resume={part}"])
    assert "ramp" not in again
    assert run(again).status == "ok"
    assert_same_run(part, run(compose(small(text)), tmp_path / "whole").run_dir)


# --- speed ------------------------------------------------------------------------------------------------------------


def test_speed_over_a_window_that_crosses_a_stage():
    """Against the sums; the first step of each stage compiles and is left out."""
    stages = [Stage(0, 2, 8), Stage(3, 4, 8), Stage(6, 4, 16)]
    at = [stages[0]] * 3 + [stages[1]] * 3 + [stages[2]] * 4
    seconds = [9.0, 0.1, 0.2, 9.0, 0.3, 0.4, 9.0, 0.5, 0.6, 0.7]
    per_token = lambda length: 100 + length
    clock = StepClock()
    trainer = SimpleNamespace(clock=clock, peak_flops=1e4, flops_per_token=per_token)
    throughput, begin = Throughput(every=1), 0
    for end in (2, 5, 7, 10):
        for stage, s in zip(at[begin:end], seconds[begin:end], strict=True):
            clock.add(s, stage)
        timed = [(at[i], seconds[i]) for i in range(begin, end) if seconds[i] != 9.0]
        took, tokens = sum(s for _, s in timed), sum(stage.tokens for stage, _ in timed)
        flops = sum(stage.tokens * per_token(stage.seq_len) for stage, _ in timed)
        got = throughput(trainer)
        assert got["perf/tokens_per_s"] == pytest.approx(tokens / took)
        assert got["perf/step_ms"] == pytest.approx(1e3 * took / len(timed))
        assert got["perf/mfu"] == pytest.approx(flops / took / 1e4)
        begin = end
    assert (clock.first_step_seconds, clock.steps) == (9.0, 7)
    assert throughput(trainer) == {}


# --- budgets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grows", RAMPS)
@pytest.mark.parametrize("kind", ["tokens", "flops", "time"])
def test_what_a_run_uses_of_a_budget(kind, grows, text, monkeypatch):
    """Step by step."""
    asked = Counter()

    def step_seconds(cfg, vocab_size, stage):
        asked[stage.shape] += 1
        return 0.001 * stage.batch_size * stage.seq_len**2

    monkeypatch.setattr(step_time, "step_seconds", step_seconds)
    cfg = compose(small(text, *RAMPS[grows]))
    model = build(compose(small(text)).model.net)(vocab_size=256)
    rows = SIZES[grows] if grows == "batch_size" else [64 // length for length in SIZES[grows]]
    lengths = SIZES[grows] if grows == "seq_len" else [16] * 12
    cost = {
        "tokens": lambda b, n: b * n,
        "flops": lambda b, n: b * n * model.flops_per_token(n),
        "time": lambda b, n: 0.001 * b * n**2,
    }[kind]
    budgets = Budgets(kind)
    assert budgets.of(cfg) == pytest.approx(sum(map(cost, rows, lengths)), rel=1e-12)
    assert budgets.of(cfg) == pytest.approx(sum(map(cost, rows, lengths)), rel=1e-12)
    assert asked == (dict.fromkeys(zip(rows, lengths, strict=True), 1) if kind == "time" else {})


@pytest.mark.parametrize("kind", ["tokens", "flops"])
def test_a_ramp_of_few_tokens_is_given_more_steps(kind, text):
    common = small(text, "train.steps=200", "train.batch_size=16")
    lines = [["ramp=none"], ["ramp=batch_size"], ["ramp=seq_len"]]
    candidates = [Candidate(tuple(line), compose([*common, *line])) for line in lines]
    match = Match(kind, "steps", ["ramp=none"])
    solutions = solve(match, candidates, lambda line: compose([*common, *line]))
    target = Budgets(kind).of(candidates[0].cfg)

    def used(cfg, steps):
        cfg = copy.deepcopy(cfg)
        cfg.train.steps = steps
        return Budgets(kind).of(cfg)

    for candidate, solution in zip(candidates, solutions, strict=True):
        steps = solution.adjusted.get("train.steps", 200)
        at = partial(used, candidate.cfg)
        assert solution.budget["value"] == at(steps)
        assert solution.budget["residual"] == at(steps) / target - 1
        closest = min(abs(at(n) - target) for n in range(steps - 4, steps + 5))
        assert abs(at(steps) - target) <= closest + 0.002 * target
    assert solutions[1].adjusted["train.steps"] > 230
    assert solutions[0].adjusted == {}
    assert (solutions[2].adjusted == {}) is (kind == "tokens")


def test_time_is_that_of_a_real_step_of_the_stage(text):
    cfg = compose(small(text, *RAMPS["batch_size"], "train.compile=false", "train.n_micro=1", "model.n_layers=1"))
    assert step_time.step_seconds(cfg, 256, Stage(0, 1, 16)) > 0


def test_a_sweep_finds_mistakes_before_it_starts(text):
    with pytest.raises(ConfigError, match=r"ramp\.until=0\.67 of train\.steps=12 is 8 steps, too few"):
        Preparation().try_out(compose(small(text, "ramp=batch_size", "ramp.until=0.67", "train.batch_size=8")))
    for line in ([], ["data=mqar", "data.vocab_size=32", "data.n_pairs=2"]):
        ours = [o for o in small(text) if not o.startswith(("data", "callback"))] if line else small(text)
        cfg = compose([*ours, "ramp=seq_len", "ramp.start=8", *line])
        if line:
            with pytest.raises(ConfigError, match="ramp=seq_len cuts"):
                Preparation().try_out(cfg)
        else:
            Preparation().try_out(cfg)
