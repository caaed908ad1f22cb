"""The step of a population against each member's own."""

import math

import mlx.core as mx
import numpy as np
import pytest

import lmxexp
from lmxexp.build import build
from lmxexp.data.build import build_source
from lmxexp.model.build import build_model
from lmxexp.ops.trees import by_path
from lmxexp.optim.build import build_optimizer
from lmxexp.population.settings import NotMappable
from lmxexp.population.step import PopulationStep
from lmxexp.train.random_state import STATE, set_random_state
from lmxexp.train.sentinel import RetraceError
from lmxexp.train.step import TrainStep
from tests.population.close import assert_close, difference, rounding

SMALL = ["data=mqar", "data.vocab_size=32", "data.n_pairs=2", "data.n_eval=2", "train.seq_len=16", "train.batch_size=4"]
SMALL += ["train.steps=20", "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.n_kv_heads=1"]
OWN = [["seed=1"], ["seed=2", "optim.learning_rate=3e-3"], ["seed=3", "schedule.warmup_steps=2"]]
STEPS = 3


def parts(*overrides):
    cfg = lmxexp.compose([*SMALL, *overrides])
    source = build_source(cfg)
    model = build_model(cfg, vocab_size=32)
    model.train()
    optimizer = build_optimizer(build(cfg.optim), build(cfg.schedule))
    optimizer.init(model.trainable_parameters())
    return model, optimizer, build(cfg.loss), source


def population(common, own, **settings):
    models, optimizers, losses, sources = zip(*(parts(*common, *o) for o in own), strict=True)
    keys = [mx.random.key(7 + i) for i in range(len(own))]
    return PopulationStep(models, optimizers, losses, keys, **settings), sources


def trained(common, own, steps=STEPS, **settings):
    """The step of the members after some steps, and the scalars of each."""
    step, sources = population(common, own, **settings)
    scalars = []
    for i in range(steps):
        before = step.state
        scalars.append(step([source.batch(i) for source in sources]))
        mx.eval(scalars[-1], step.state)
        lost = [k for k, loss in enumerate(scalars[-1]["train/loss"].tolist()) if not math.isfinite(loss)]
        if lost:
            step.freeze(lost, before)
    return step, scalars


def alone(i, common, own, steps=STEPS, **settings):
    """A member by itself: weights, optimizer state, random key, and the scalars of each step."""
    model, optimizer, loss, source = parts(*common, *own)
    set_random_state(7 + i)
    step = TrainStep(model, optimizer, loss, **settings)
    scalars = []
    for k in range(steps):
        scalars.append(step(source.batch(k)))
        mx.eval(scalars[-1], step.state)
    return by_path(model.parameters()), by_path(optimizer.state), STATE[0][:], scalars


def assert_members(common, own=OWN, tolerance=0.0, but=(), **settings):
    """``tolerance``: see `assert_close`; ``but``: state that is not compared, by the ends of its names."""
    step, together = trained(common, own, **settings)
    wrong = []
    for i, o in enumerate(own):
        *trees, key, scalars = alone(i, common, o, **settings)
        pairs = []
        for tree, member in zip(trees, step.member(i), strict=False):
            assert tree.keys() == member.keys()
            pairs += [(path, member[path], want) for path, want in tree.items() if not path.endswith(but)]
        assert mx.array_equal(step.member(i)[2], key).item()
        for of_one, of_all in zip(scalars, together, strict=True):
            assert of_one.keys() == of_all.keys()
            pairs += [(name, of_all[name][i], want) for name, want in of_one.items()]
        wrong += [found for pair in pairs if (found := difference(*pair, tolerance))]
    assert not wrong, "\n".join(wrong)


ROUNDING = rounding(0.0)
IN_BF16 = rounding(0.0, 2e-2)
"""Of Muon's products, which are in bf16 unless told otherwise."""


@pytest.mark.parametrize("optim", ["adamw", "adam", "lion", "muon", "sgd", "adafactor"])
def test_optimizers(optim):
    tolerance = IN_BF16 if optim == "muon" else ROUNDING
    assert_members([f"optim={optim}", "model.dropout=0.1"], tolerance=tolerance)


def test_muon_in_fp32():
    assert_members(["optim=muon", "optim.ns_precision=fp32"], tolerance=rounding(0.0, 1e-3))


@pytest.mark.parametrize(
    "model", ["attention=mla", "attention=gated_deltanet", "attention=mamba2", "ffn=moe", "model=deepseek_v3"]
)
def test_models(model):
    assert_members([model, "model.n_layers=2"], tolerance=ROUNDING)


def test_biases_that_are_moved_by_the_step_are_each_member_s():
    """The router of deepseek_v3 keeps one that no gradient reaches."""
    step, _ = trained(["model=deepseek_v3", "model.n_layers=2"], OWN)
    [path] = [p for p in step.state["parameters"] if p not in step._trainable][:1]
    biases = [step.member(i)[0][path] for i in range(3)]
    assert mx.abs(biases[0]).max().item() > 0
    assert not mx.array_equal(biases[0], biases[1]).item()


@pytest.mark.parametrize("model", ["attention=gqa", "ffn=moe"])
def test_accumulation(model):
    """Parts are added up in another order of operations."""
    assert_members([model, "model.dropout=0.1"], tolerance=rounding(3e-6), n_micro=2)


def test_mixed_precision():
    assert_members(["model.dropout=0.1"], tolerance=rounding(0.0, 2e-2), compute_dtype=mx.bfloat16)


def test_eager():
    assert_members(["model.dropout=0.1"], tolerance=ROUNDING, compile=False)


def test_without_clipping():
    assert_members([], tolerance=ROUNDING, max_grad_norm=None)


@pytest.mark.parametrize(
    "own",
    [
        [["optim.weight_decay=0.1"], ["optim.weight_decay=0"], ["optim.weight_decay=0.5"]],
        [["optim.betas=[0.9,0.95]"], ["optim.betas=[0.9,0.999]"], ["optim.betas=[0.5,0.95]"]],
        [["optim.eps=1e-8"], ["optim.eps=1e-3"]],
        [["loss.z_loss=0"], ["loss.z_loss=0.01"]],
        [
            ["optim=muon", "optim.ns_precision=fp32", "optim.momentum=0.9"],
            ["optim=muon", "optim.ns_precision=fp32", "optim.adamw.weight_decay=0.3"],
        ],
        [["optim=lion", "optim.betas=[0.9,0.99]"], ["optim=lion", "optim.betas=[0.95,0.98]"]],
        [["optim=adafactor", "optim.eps2=1e-3"], ["optim=adafactor", "optim.eps2=1e-2"]],
        [["optim=sgd", "optim.weight_decay=0.1"], ["optim=sgd", "optim.momentum=0.5"]],
        [["schedule.final=0.5"], ["schedule.final=0.1"]],
    ],
    ids=lambda own: " ".join(o[-1] for o in own),
)
def test_numbers_of_their_own(own):
    """Against Python's numbers: 1 - 0.999 in fp32 would be wrong in the fifth digit."""
    # Muon's iteration in fp32 takes what a GPU rounds otherwise a thousandfold up, in weights that start near zero.
    gpu = 1e-3 if "optim=muon" in own[0] else 1e-4
    assert_members([], own, tolerance=rounding(1e-6, gpu))


def test_one_that_diverges_is_left_as_it_was_and_the_others_are_untouched():
    own = [["seed=1"], ["seed=2", "optim=sgd", "optim.learning_rate=1e30"], ["seed=3"]]
    own = [["optim=sgd", *o] for o in own]
    step, scalars = trained([], own, steps=5)
    losses = np.array(mx.stack([s["train/loss"] for s in scalars]))
    first_bad = int(np.argmax(~np.isfinite(losses[:, 1])))
    assert not np.isfinite(losses[first_bad, 1])
    before, _ = trained([], own, steps=first_bad)
    for frozen, as_before in zip(step.member(1), before.member(1), strict=True):
        pairs = (
            zip(frozen.values(), as_before.values(), strict=True) if isinstance(frozen, dict) else [(frozen, as_before)]
        )
        assert all(mx.array_equal(a, b, equal_nan=True).item() for a, b in pairs)
    assert step.state["alive"].tolist() == [True, False, True]
    for i in (0, 2):
        parameters, *_ = alone(i, [], own[i], steps=5)
        for path, want in parameters.items():
            assert math.isfinite(mx.abs(want).max().item())
            assert_close(step.member(i)[0][path], want, ROUNDING, path)


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ([["optim=adamw"], ["optim=lion"]], "AdamW, Lion are different algorithms"),
        ([["optim=sgd"], ["optim=sgd", "optim.nesterov=true"]], "optim.nesterov is False, True"),
        ([["optim=sgd"], ["optim=sgd", "optim.momentum=0"]], "differ in their shapes"),
        ([["model.d_model=16"], ["model.d_model=32"]], "differ in their shapes"),
    ],
)
def test_members_that_do_not_fit(own, reason):
    with pytest.raises(NotMappable, match=reason):
        population([], own)


def test_what_is_traced_leaves_no_trace():
    """The first member's own objects are as before: they serve evaluation and checkpoints."""
    model, optimizer, loss, source = parts("loss.z_loss=0.1")
    others = parts("loss.z_loss=0.2", "optim.weight_decay=0.5")
    before = {k: mx.array(v) for k, v in by_path(model.parameters()).items()}
    settings, schedules, z_loss = optimizer.weight_decay, dict(optimizer._schedulers), loss.z_loss
    key = STATE[0][:]
    step = PopulationStep([model, others[0]], [optimizer, others[1]], [loss, others[2]], [key, key])
    mx.eval(step([source.batch(0), others[3].batch(0)]), step.state)
    assert all(mx.array_equal(a, before[path]).item() for path, a in by_path(model.parameters()).items())
    assert (optimizer.weight_decay, loss.z_loss, optimizer._schedulers) == (settings, z_loss, schedules)
    assert optimizer.state["step"].item() == 0
    assert mx.array_equal(STATE[0], key).item()


def test_another_shape_is_no_silent_retrace():
    step, sources = population([], OWN)
    batches = [source.batch(0) for source in sources]
    mx.eval(step(batches))
    with pytest.raises(RetraceError, match="training step of 3 members was traced 2 times"):
        step([batch._replace(**{k: v[:2] for k, v in batch._asdict().items() if v is not None}) for batch in batches])
