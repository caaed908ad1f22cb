"""Arms of equal budget: predicted numbers against built models, references, and what is refused."""

import copy
import functools
import weakref
from collections.abc import Sequence
from contextlib import contextmanager
from types import SimpleNamespace

import mlx.core as mx
import pytest
import yaml
from omegaconf import OmegaConf

from lmxexp import build_model, compose
from lmxexp.build import build
from lmxexp.describe import describe
from lmxexp.interfaces import ConfigError, Stage
from lmxexp.sweep import step_time
from lmxexp.sweep.adjust import FITTING
from lmxexp.sweep.budget import Budgets, same_budget
from lmxexp.sweep.match import Candidate, Match, key_of, solve
from tests.reference.count_flops import forward_flops

MHA = "attention=mha"
GROUPS = ("model", "data", "tokenizer", "optim", "match")
MIXERS = ["gqa", "mqa", "sliding", "mla", "gated_deltanet", "mamba2"]


@functools.cache
def _kinds(chosen: tuple[str, ...]):
    return compose(chosen)


def composed(line: Sequence[str]):
    """As `compose`; kinds are composed once, because that takes long, and values are laid on top."""
    keys = {o: key_of(o) for o in line}
    kinds = tuple(o for o in line if "/" in keys[o] or keys[o] in GROUPS)
    cfg = copy.deepcopy(_kinds(tuple(kinds)))
    for override in line:
        if override not in kinds:
            OmegaConf.update(cfg, keys[override], yaml.safe_load(override.partition("=")[2]))
    return cfg


def solved(match, *lines, compose=composed):
    """Of each line its solution and its configuration with the solution in it."""
    candidates = [Candidate(tuple(line), composed(line)) for line in lines]
    result = []
    for candidate, solution in zip(candidates, solve(match, candidates, compose), strict=True):
        cfg = copy.deepcopy(candidate.cfg)
        for key, value in solution.adjusted.items():
            OmegaConf.update(cfg, key, value)
        result.append((solution, cfg))
    return result


@contextmanager
def refuses(text):
    with pytest.raises(ConfigError) as error:
        yield
    assert text in str(error.value)


def params_of(cfg, vocab_size=256):
    return build_model(cfg, vocab_size=vocab_size).n_params()


@pytest.mark.parametrize("adjust", ["d_ff", "d_model"])
@pytest.mark.parametrize("kind", MIXERS)
def test_equal_parameters(kind, adjust):
    (reference, same), (solution, cfg) = solved(Match("params", adjust, MHA), [MHA], [f"attention={kind}"])
    target = params_of(same)
    assert (reference.adjusted, reference.budget["residual"]) == ({}, 0.0)
    assert reference.budget["value"] == reference.budget["target"] == target
    assert params_of(cfg) == solution.budget["value"]
    assert solution.budget["residual"] == solution.budget["value"] / target - 1
    assert abs(solution.budget["residual"]) < 0.0025  # within a quarter of the tolerance, which these can
    assert solution.adjusted.keys() <= {"model.d_ff", "model.d_model"}
    assert adjust == "d_model" or solution.adjusted.keys() == {"model.d_ff"}
    assert all(type(n) is int for n in solution.adjusted.values())


@pytest.mark.parametrize(
    ("preset", "adjust", "keys"),
    [
        ("mixtral", "d_ff", {"model.d_ff", "model.ffn.d_expert"}),  # d_ff alone comes in steps of 16 times 8 experts
        ("deepseek_v3", "d_ff", {"model.d_ff", "model.ffn.d_expert"}),
        ("gemma2", "d_ff", {"model.d_ff"}),  # windows in every other layer
        ("lfm2", "d_ff", {"model.d_ff"}),  # convolutions and attention
        ("jamba", "d_model", {"model.d_ff", "model.d_model"}),  # its d_ff is a number, and follows
        ("mamba", "d_model", {"model.d_model"}),  # no feed-forward, and no heads
    ],
)
def test_equal_parameters_of_presets(preset, adjust, keys):
    ((solution, cfg),) = solved(Match("params", adjust, ["model=llama", MHA]), [f"model={preset}"])
    assert params_of(cfg) == solution.budget["value"]
    assert solution.budget["target"] == params_of(composed(["model=llama", MHA]))
    assert abs(solution.budget["residual"]) < 0.01
    assert set(solution.adjusted) == keys


def test_widths_that_come_with_the_model():
    """A number for d_ff keeps its proportion to d_model, unless the user has set it for this arm."""
    match = Match("params", "d_model", MHA)
    ((solution, cfg),) = solved(match, ["attention=mqa", "model=gpt", "size=10m"])
    assert cfg.model.d_ff / cfg.model.d_model == pytest.approx(1368 / 384, rel=0.05)
    fixed = ["attention=mamba2", "model.d_ff=256", "model.head_dim=32"]
    ((solution, cfg),) = solved(match, fixed)
    assert (cfg.model.d_ff, set(solution.adjusted)) == (256, {"model.d_model"})


def test_rounder_widths_are_preferred():
    """One unit of d_ff is 3 x 128 x 4 = 1,536 parameters of 812,160: of a multiple of 16, 24,576, which is 3 %."""
    per_unit = 3 * 128 * 4
    for kind in ("gqa", "mqa", "mla", "mamba2"):
        ((solution, _),) = solved(Match("params", "d_ff", MHA), [f"attention={kind}"])
        d_ff, budget = solution.adjusted["model.d_ff"], solution.budget
        off = lambda n, d_ff=d_ff, budget=budget: budget["value"] + (n - d_ff) * per_unit - budget["target"]
        good = [n for n in range(1, 1000) if abs(off(n)) <= 0.0025 * budget["target"]]
        roundest = max(good, key=lambda n: min(n & -n, 16))
        assert min(d_ff & -d_ff, 16) == min(roundest & -roundest, 16)
        assert d_ff in good


def test_the_real_vocabulary_counts(tmp_path):
    """Of characters it is known only once the text is read; it is read once."""
    text = tmp_path / "text.txt"
    letters = 100 * ("".join(chr(ord("a") + i % 22) for i in range(40)) + "\n")
    text.write_text(letters)
    data = ["data=text", f"data.path={text}", "tokenizer=char", "train.seq_len=16"]
    budgets = Budgets("params")
    cfg = composed([MHA, *data])
    assert budgets.vocabulary(cfg) == 23
    text.unlink()
    assert budgets.vocabulary(composed(["attention=mqa", *data, "seed=2"])) == 23
    text.write_text(letters)
    _, (solution, cfg) = solved(Match("params", "d_ff", MHA), [MHA, *data], ["attention=mqa", *data])
    assert solution.budget["value"] == params_of(cfg, 23)
    bpe = composed(["data=text", f"data.path={text}", "tokenizer=bpe", "tokenizer.vocab_size=300", "train.seq_len=16"])
    assert Budgets("params").vocabulary(bpe) < 300  # the text has too few pairs for more
    assert Budgets("params").vocabulary(composed(["data=mqar", "data.vocab_size=64"])) == 64


def test_flops_by_steps_follow_through():
    match = Match("flops", "steps", MHA)
    for kind in ("gqa", "mamba2"):
        (_, reference), (solution, cfg) = solved(match, [MHA], [f"attention={kind}"])
        real = [
            build_model(c, vocab_size=256).flops_per_token(128) * c.train.steps * 16 * 128 for c in (reference, cfg)
        ]
        assert [solution.budget["target"], solution.budget["value"]] == real
        assert abs(real[1] / real[0] - 1) < 0.005
        assert solution.adjusted == {"train.steps": cfg.train.steps}
        assert OmegaConf.select(cfg, "schedule.steps") == cfg.train.steps  # the schedule reads it
        assert cfg.train.eval_every == reference.train.eval_every


def test_flops_are_those_that_steps_perform():
    """Against the operations of a forward pass as MLX traces them; backward is twice as much."""
    cfg = composed([MHA, "train.seq_len=24", "train.batch_size=2", "train.steps=3"])
    forward = forward_flops(build_model(cfg, vocab_size=256), mx.zeros((2, 24), mx.int32))
    assert Budgets("flops").of(cfg) == 3 * 3 * forward


@pytest.mark.parametrize("adjust", ["d_ff", "d_model"])
def test_flops_by_width(adjust):
    (_, reference), (solution, cfg) = solved(Match("flops", adjust, MHA), [MHA], ["attention=sliding"])
    per_token = [build_model(c, vocab_size=256).flops_per_token(128) for c in (reference, cfg)]
    assert abs(per_token[1] / per_token[0] - 1) < 0.01
    assert solution.budget["value"] == per_token[1] * 250 * 16 * 128
    assert cfg.train.steps == 250


def test_tokens():
    lines = [[MHA, f"train.seq_len={n}", "train.steps=100"] for n in (128, 64, 96)]
    match = Match("tokens", "steps", "train.seq_len=128")
    (a, _), (b, _), (c, _) = solved(match, *lines)
    assert (a.adjusted, b.adjusted, c.adjusted) == ({}, {"train.steps": 200}, {"train.steps": 133})
    assert c.budget == {
        "kind": "tokens", "target": 100 * 16 * 128, "value": 133 * 16 * 96, "residual": 133 * 96 / 12800 - 1,
    }  # fmt: skip


def test_time(monkeypatch):
    """By steps, from what a step takes: here 3 ms and 7 ms. Each arm is measured once, whatever its learning rate."""
    measured = []

    def step_seconds(cfg, vocab_size, stage):
        measured.append(cfg.choice.attention)
        assert vocab_size == 256
        return {"mha": 0.003, "mla": 0.007}[cfg.choice.attention]

    monkeypatch.setattr(step_time, "step_seconds", step_seconds)
    lines = [[f"attention={k}", f"optim.learning_rate={r}", f"seed={s}"]
             for k in ("mha", "mla") for r in (0.001, 1) for s in (1, 2)]  # fmt: skip
    solutions = [solution for solution, _ in solved(Match("time", "steps", MHA), *lines)]
    assert [s.adjusted for s in solutions] == 4 * [{}] + 4 * [{"train.steps": 107}]
    assert solutions[-1].budget["target"] == pytest.approx(0.75)
    assert solutions[-1].budget["value"] == pytest.approx(0.749)
    assert measured == ["mha", "mla"]


def test_of_a_step_that_was_measured_nothing_is_left(monkeypatch):
    models = []
    make = step_time._make_step

    def noting(*args):
        step = make(*args)
        models.append(weakref.ref(step.model))
        return step

    monkeypatch.setattr(step_time, "_make_step", noting)
    monkeypatch.setattr(step_time, "SECONDS", 0.0)
    tiny = ["train.batch_size=2", "train.seq_len=8", "model.n_layers=1", "model.d_model=16"]
    step_time.step_seconds(composed([MHA, *tiny]), 256, Stage(0, 2, 8))
    assert [model() for model in models] == [None]


def test_a_step_is_measured():
    mx.random.seed(3)
    tiny = ["train.batch_size=2", "train.seq_len=8", "model.n_layers=1", "model.d_model=16", "train.compile=false"]
    seconds = step_time.step_seconds(composed([MHA, *tiny]), 256, Stage(0, 2, 8))
    deeper = composed([MHA, *tiny, "model.n_layers=12", "train.seq_len=64"])
    larger = step_time.step_seconds(deeper, 256, Stage(0, 2, 64))
    assert 0 < seconds < larger < 10
    drawn = mx.random.uniform().item()
    mx.random.seed(3)
    assert mx.random.uniform().item() == drawn


@pytest.mark.parametrize(("every", "steady"), [(1, True), (2, False)])
def test_the_median_step(monkeypatch, caplog, every, steady):
    """Of steps of 4 ms and, in the unsteady case, every other of 8 ms; the first, which compile, take longer."""
    calls, clock = [], [0.0]

    class Step:
        state = ()

        def __call__(self, batch):
            assert batch.inputs.shape == batch.targets.shape == (3, 5)
            assert 0 <= batch.inputs.min() <= batch.inputs.max() < 11
            calls.append(len(calls))
            clock[0] += 0.2 if len(calls) <= step_time.WARM_UP else 0.004 if len(calls) % every == 0 else 0.008
            return ()

    monkeypatch.setattr(step_time, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(step_time, "SECONDS", 0.1)
    monkeypatch.setattr(step_time, "_make_step", lambda cfg, size: Step())
    assert step_time.step_seconds(composed([MHA]), 11, Stage(0, 3, 5)) == pytest.approx(0.004)
    assert step_time.AT_LEAST <= len(calls) - step_time.WARM_UP <= 30
    assert ("is busy with something else" in caplog.text) is not steady


@pytest.mark.parametrize(
    ("kind", "override", "same"),
    [
        ("params", "seed=7", True),
        ("params", "data.seed=7", True),
        ("params", "optim=lion", True),
        ("params", "train.batch_size=7", False),
        ("params", "model.d_ff=7", False),
        ("time", "optim.weight_decay=0.7", True),
        ("time", "optim.learning_rate=1", True),
        ("time", "optim=lion", False),
        ("memory", "optim=lion", False),
        ("memory", "schedule.warmup_steps=7", False),
    ],
)
def test_what_changes_no_budget(kind, override, same):
    assert (same_budget(composed([MHA]), kind) == same_budget(composed([MHA, override]), kind)) is same


def test_memory():
    (_, reference), (solution, cfg) = solved(Match("memory", "d_ff", MHA), [MHA], ["attention=gqa"])
    peaks = [describe(c, 256).memory.peak / 1e9 for c in (reference, cfg)]
    assert [solution.budget["target"], solution.budget["value"]] == peaks
    assert abs(peaks[1] / peaks[0] - 1) < 0.01
    assert cfg.train.batch_size == 16


def test_an_arm_that_meets_the_budget_stays_as_it_is():
    """Windows cost no parameters."""
    ((solution, _),) = solved(Match("params", "d_ff", "attention=gqa"), ["attention=sliding"])
    assert (solution.adjusted, solution.budget["residual"]) == ({}, 0.0)


def test_reference_within_each_of_the_others():
    """attention x size x seed: each size has a budget of its own, and seeds share a solution."""
    asked = []

    def compose(line):
        asked.append(line)
        return composed(line)

    lines = [[f"attention={k}", f"model.n_layers={n}", f"seed={s}"]
             for k in ("gqa", "mha") for n in (2, 3) for s in (1, 2)]  # fmt: skip
    found = [solution for solution, _ in solved(Match("params", "d_ff", MHA), *lines, compose=compose)]
    targets = {n: params_of(composed([MHA, f"model.n_layers={n}"])) for n in (2, 3)}
    assert [s.budget["target"] for s in found] == 2 * [targets[2], targets[2], targets[3], targets[3]]
    assert found[0].adjusted == found[1].adjusted
    assert found[2] == found[3]
    assert found[0].budget["value"] != found[2].budget["value"]
    assert [s.adjusted for s in found[4:]] == [{}] * 4
    assert asked == []  # all references are candidates


def test_reference_outside_of_the_sweep():
    asked = []

    def compose(line):
        asked.append(line)
        return composed(line)

    lines = [[f"attention={k}", "train.steps=7", f"seed={s}"] for k in ("gqa", "mqa") for s in (1, 2)]
    match = Match("params", "d_ff", ["model/attention=mha", "ffn=mlp"])
    found = [solution for solution, _ in solved(match, *lines, compose=compose)]
    assert asked == [["model/attention=mha", "train.steps=7", "seed=1", "ffn=mlp"]]
    assert {s.budget["target"] for s in found} == {params_of(composed([MHA, "ffn=mlp"]))}


def test_a_swept_width_is_the_budget_of_its_points():
    lines = [[f"attention={k}", f"model.d_ff={n}"] for k in ("mha", "mqa") for n in (128, 256)]
    (a, _), (b, _), (c, _), (d, _) = solved(Match("params", "d_ff", MHA), *lines)
    assert (a.adjusted, b.adjusted) == ({}, {})
    assert (c.adjusted, d.adjusted) == ({"model.d_ff": 192}, {"model.d_ff": 320})  # 2 x 96 x 128 / (3 x 128) = 64 more


def test_reference_by_default():
    match = Match("params", "d_ff")
    lines = [["attention=mqa", "train.steps=9", "optim.learning_rate=0.1", "seed=1"],
             ["attention=mqa", "train.steps=9", "optim.learning_rate=0.2", "seed=2"],
             ["attention=gqa", "train.steps=9", "optim.learning_rate=0.1", "seed=1"]]  # fmt: skip
    assert match.with_reference(lines).record == {
        "kind": "params", "reference": ["attention=mqa"], "adjust": "d_ff", "tolerance": 0.01,
    }  # fmt: skip
    assert match.record["reference"] is None
    found = [solution for solution, _ in solved(match, *lines)]
    assert [s.adjusted for s in found[:2]] == [{}, {}]
    assert found[2].budget["target"] == params_of(composed(["attention=mqa"]))
    assert match.with_reference([["seed=1"], ["seed=2"]]).reference == []
    with refuses("match.reference is null, and the first point does not set model/ffn"):
        match.with_reference([[MHA], ["attention=gqa", "ffn=mlp"]])


@pytest.mark.parametrize("reference", [None, [MHA, "train.steps=9"]])
def test_the_reference_leaves_alone_what_is_adjusted(reference):
    match = Match("flops", "steps", reference)
    with refuses("train.steps=9 cannot be the reference: match.adjust=steps changes it"):
        match.with_reference([[MHA, "train.steps=9"], [MHA, "train.steps=18"]])
    with refuses("model.d_ff=9 cannot be the reference: match.adjust=d_model changes it"):
        Match("params", "d_model", "model.d_ff=9").with_reference([])
    with refuses("match.reference=mha: expected overrides such as attention=mha"):
        Match("params", "d_ff", "mha").with_reference([])


def test_all_that_cannot_be_met_is_told_at_once():
    lines = [["model=mamba", "seed=1"], ["model=mamba", "seed=2"], ["model=jamba"], ["model=llama"]]
    with pytest.raises(ConfigError) as error:
        solved(Match("params", "d_ff", "model=llama"), *lines)
    head, mamba, jamba = str(error.value).splitlines()
    assert head == "2 settings cannot work:"
    assert mamba.strip() == (
        "model=mamba: nothing in this arm reads model.d_ff, which match.adjust=d_ff would change; "
        "use match.adjust=d_model"
    )
    smallest = params_of(OmegaConf.merge(composed(["model=jamba"]), {"model": {"d_ff": 1}}))
    target = params_of(composed(["model=llama"]))
    assert jamba.strip() == (
        "model=jamba: match=params cannot be met within match.tolerance=0.01: nearest is model.d_ff=1 with "
        f"{smallest:,} parameters, {smallest / target - 1:+.2%} of {target:,}; "
        "try a larger match.reference, or match.adjust=d_model"
    )


@pytest.mark.parametrize(
    ("match", "line", "message"),
    [
        (
            Match("params", "d_ff", MHA, tolerance=0.0001), ["attention=gqa"],
            "within match.tolerance=0.0001: nearest is model.d_ff=379 with",
        ),
        (
            Match("params", "d_model", MHA), ["model=mamba2", "model.n_heads=16", "model.n_layers=4"],
            "cannot be met within match.tolerance=0.01: nearest is model.d_model=",
        ),
        (
            Match("flops", "steps", [MHA, "train.seq_len=8"]), ["attention=mqa", "train.steps=4"],
            "a larger match.reference, or match.adjust=d_ff, or match.adjust=d_model, or more train.steps for all",
        ),
        (
            Match("tokens", "steps", "train.batch_size=7"), ["train.batch_size=16", "train.steps=2"],
            "nearest is train.steps=1 with 2,048 tokens, +14.29% of 1,792; try a larger match.reference, or more",
        ),
        (
            Match("params", "d_ff", MHA), ["model=mixtral", "ffn.d_expert=24"],
            "model.d_ff changes nothing in this arm, which has widths of its own; use match.adjust=d_model",
        ),
        (
            Match("flops", "d_ff", MHA), ["model=mamba"],
            "would change; use match.adjust=steps or match.adjust=d_model",
        ),
        (Match("params", "d_ff", "attention=mhaa"), ["attention=gqa"], "match.reference=attention=mhaa cannot be comp"),
        (Match("params", "d_ff", "model.n_heads=5"), ["model.n_heads=4"], "match.reference=model.n_heads=5: model.n_"),
    ],
)  # fmt: skip
def test_budgets_that_cannot_be_met(match, line, message):
    with refuses(message):
        solved(match, line)


def test_memory_that_cannot_be_estimated(monkeypatch):
    def estimate(*args, **settings):
        raise ValueError("a primitive that is not traced")

    monkeypatch.setattr("lmxexp.train.memory.estimate", estimate)
    with pytest.raises(
        ConfigError, match="match=memory: there is no estimate: a primitive that is not traced; match an"
    ):
        solved(Match("memory", "d_ff", MHA), ["attention=gqa"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "loss"}, "match.kind=loss: expected one of params, flops, tokens, time, memory"),
        ({"adjust": "steps"}, "match.adjust=steps does not fit match=params, which adjusts: d_ff, d_model"),
        ({"kind": "time"}, "match.adjust=d_ff does not fit match=time, which adjusts: steps"),
        ({"tolerance": 0}, "match.tolerance=0 must be above 0"),
        ({"tolerance": 1}, "match.tolerance=1 must be above 0 and below 1"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with refuses(message):
        Match(**{"kind": "params", "adjust": "d_ff", **settings})


@pytest.mark.parametrize("kind", FITTING)
def test_every_yaml_builds(kind):
    match = build(composed([f"match={kind}", "match.reference='attention=mha'"]).match)
    assert (match.kind, match.adjust, match.overrides) == (kind, FITTING[kind][0], [MHA])
    assert match.tolerance == 0.01


def test_by_default_nothing_is_matched():
    assert build(composed([]).match) is None
    listed = build(composed(["match=params", "match.reference=['attention=mha','size=10m']"]).match)
    assert listed.overrides == [MHA, "size=10m"]


def test_nothing_is_made():
    """Counting leaves the random state, the candidates and the memory alone."""
    mx.random.seed(3)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    candidates = [Candidate((f"attention={k}",), composed([f"attention={k}", "size=350m"])) for k in ("mha", "mla")]
    texts = [OmegaConf.to_yaml(c.cfg) for c in candidates]
    solve(Match("params", "d_ff", MHA), candidates, composed)
    assert mx.get_peak_memory() - before < 1e6
    assert [OmegaConf.to_yaml(c.cfg) for c in candidates] == texts
    drawn = mx.random.uniform().item()
    mx.random.seed(3)
    assert mx.random.uniform().item() == drawn
