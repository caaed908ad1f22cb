"""Sophia against its paper, its curvature against the exact one, and the training steps that hand it over."""

import itertools

import mlx.core as mx
import numpy as np
import pytest
from mlx.optimizers import MultiOptimizer
from mlx.utils import tree_flatten, tree_unflatten

import lmxexp
from lmxexp.interfaces import Batch, ConfigError
from lmxexp.model.build import build_model
from lmxexp.ops.own_gradient import without_own_gradients
from lmxexp.ops.trees import by_path
from lmxexp.optim import curvature
from lmxexp.optim.build import optimizer_of
from lmxexp.optim.sophia import Sophia
from lmxexp.population.settings import NotMappable
from lmxexp.train.random_state import STATE, set_random_state
from lmxexp.train.step import TrainStep
from tests.optim.toy_problem import MAX_NORM, STEPS, assert_same, factor, gradient, start, to_flat, to_tree
from tests.population.close import rounding
from tests.population.test_step import assert_members, parts, population
from tests.reference import optimizers as reference

DECAY, N, EVERY = 0.3, 7.0, 4
SETTINGS = {"betas": (0.9, 0.95), "clip": 0.5, "eps": 1e-6}
SOPHIA = ["optim=sophia", "optim.estimate_every=2", "optim.learning_rate=1e-2"]


def drawn(parameters, step):
    """Another gradient of the toy problem, in the place of that of drawn labels."""
    return gradient(parameters, 1000 + step)


def by_rule(steps=STEPS):
    """The paper's algorithm 3 in float64."""
    p = start()
    m, h = ({name: np.zeros_like(x) for name, x in p.items()} for _ in range(2))
    (beta1, beta2), clip, eps = SETTINGS["betas"], SETTINGS["clip"], SETTINGS["eps"]
    for step in range(steps):
        g, estimate = reference.clip(gradient(p, step), MAX_NORM), drawn(p, step)
        lr = 1e-2 * factor(step)
        for name, x in p.items():
            m[name] = beta1 * m[name] + (1 - beta1) * g[name]
            if step % EVERY == 0:
                h[name] = beta2 * h[name] + (1 - beta2) * N * estimate[name] ** 2
            x = x - lr * (DECAY if x.ndim > 1 else 0.0) * x
            p[name] = x - lr * np.clip(m[name] / np.maximum(clip * h[name], eps), -1, 1)
    return p


def by_sophia(steps=STEPS):
    optimizer = Sophia(lambda step: 1e-2 * factor_in_mlx(step), weight_decay=DECAY, estimate_every=EVERY, **SETTINGS)
    parameters = to_tree(start())
    optimizer.init(parameters)
    for step in range(steps):
        if curvature.is_due(optimizer, optimizer.state["step"]):
            curvature.observe(optimizer, to_tree(drawn(to_flat(parameters), step)), mx.array(N))
        gradients = reference.clip(gradient(to_flat(parameters), step), MAX_NORM)
        parameters = optimizer.apply_gradients(to_tree(gradients), parameters)
        mx.eval(parameters, optimizer.state)
    return to_flat(parameters)


def factor_in_mlx(step):
    return mx.array(factor(int(step.item())), mx.float32)


def test_is_the_published_optimizer():
    found, want = by_sophia(), by_rule()
    assert_same(found, want, 1e-5)
    with pytest.raises(AssertionError):
        assert_same(start(), want, 1e-2)


def test_the_rule_agrees_with_pytorch_optimizer():
    """Its Sophia-H clips the quotient to ``p`` where this one multiplies by ``clip``; the curvature is handed to it."""
    torch, package = pytest.importorskip("torch"), pytest.importorskip("pytorch_optimizer")
    p = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in start().items()}
    clip = SETTINGS["clip"]
    groups = [
        {"params": [x for x in p.values() if (x.ndim > 1) is decays], "weight_decay": clip * DECAY if decays else 0.0}
        for decays in (True, False)
    ]
    optimizer = package.SophiaH(
        groups, lr=1.0, betas=SETTINGS["betas"], p=clip, eps=SETTINGS["eps"] / clip, update_period=10**9,
        weight_decouple=True, foreach=False,
    )  # fmt: skip
    for step in range(STEPS):
        now = {name: x.detach().numpy().copy() for name, x in p.items()}
        gradients = reference.clip(gradient(now, step), MAX_NORM)
        for name, x in p.items():
            x.grad = torch.tensor(gradients[name])
        estimates = {
            x: torch.tensor(N * estimate**2) for x, estimate in zip(p.values(), drawn(now, step).values(), strict=True)
        }
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * factor(step) / clip
        in_order = [estimates[x] for group in optimizer.param_groups for x in group["params"]]
        optimizer.step(hessian=in_order if step % EVERY == 0 else None)
    assert_same({name: x.detach().numpy() for name, x in p.items()}, by_rule(), 1e-5)


def small_model_and_batch(seq_len=6):
    cfg = lmxexp.compose(["model.d_model=8", "model.n_layers=1", "model.n_heads=2", "model.n_kv_heads=1"])
    model = build_model(cfg, vocab_size=5)
    model.train()
    ids = mx.random.randint(0, 5, (3, seq_len + 1), key=mx.random.key(4))
    weights = mx.array(np.random.default_rng(0).integers(0, 2, (3, seq_len)).astype(np.float32))
    return model, Batch(inputs=ids[:, :-1], targets=ids[:, 1:], weights=weights)


def test_the_estimate_has_the_gauss_newton_diagonal_for_its_mean():
    """For a norm's scales, against the diagonal of the mean over positions of ``J^T (diag(p) - p p^T) J``."""
    model, batch = small_model_and_batch()
    path = next(p for p in by_path(model.trainable_parameters()) if "norm" in p)

    def logits_of(value):
        model.update(unflattened(path, value))
        h, _ = model.hidden(batch.inputs, segment_ids=batch.segment_ids)
        return model.logits(h).astype(mx.float32)

    value = by_path(model.parameters())[path]
    n = batch.weights.sum().item()
    base = logits_of(value)
    p = mx.softmax(base, -1)
    exact = []
    for i in range(value.size):
        direction = (mx.arange(value.size) == i).astype(mx.float32).reshape(value.shape)
        with without_own_gradients():  # which have no derivative forward
            _, [column] = mx.jvp(logits_of, [value], [direction])
        quadratic = (p * column.square()).sum(-1) - (p * column).sum(-1).square()
        exact.append((quadratic * batch.weights).sum().item() / n)
    model.update(unflattened(path, value))

    def loss_of(value):
        model.update(unflattened(path, value))
        return curvature.drawn_loss(model, batch)

    grad = mx.compile(mx.value_and_grad(loss_of), inputs=STATE, outputs=STATE)
    total, n_draws = np.zeros(value.size), 4000
    set_random_state(11)
    for _ in range(n_draws):
        (_, n_targets), g = grad(value)
        assert n_targets.item() == n
        total += n * np.array(g, np.float64).ravel() ** 2
    np.testing.assert_allclose(total / n_draws, exact, rtol=0.15)


def unflattened(path, value):
    return tree_unflatten([(path, value)])


def test_drawn_labels_are_not_those_of_the_batch_and_weights_count():
    model, batch = small_model_and_batch()
    set_random_state(3)
    losses = {curvature.drawn_loss(model, batch)[0].item() for _ in range(5)}
    assert len(losses) == 5
    none = batch._replace(weights=mx.zeros_like(batch.weights))
    loss, n = curvature.drawn_loss(model, none)
    assert (loss.item(), n.item()) == (0.0, 0.0)


# --- in the training step ---------------------------------------------------------------------------------------------


def trained(steps, compile=True, **settings):
    model, optimizer, loss, source = parts(*SOPHIA)
    set_random_state(5)
    step = TrainStep(model, optimizer, loss, compile=compile, **settings)
    seen = []
    for i in range(steps):
        scalars = step(source.batch(i))
        mx.eval(scalars, step.state)
        seen.append({path: np.array(a) for path, a in tree_flatten(optimizer.state) if path.endswith(".h")})
    return step, seen, by_path(model.parameters())


@pytest.mark.parametrize("settings", [{}, {"n_micro": 2}, {"compute_dtype": mx.bfloat16}], ids=str)
def test_the_step_estimates_on_every_so_many_steps(settings):
    step, seen, _ = trained(5, **settings)
    changed = [any(np.any(now[path] != then[path]) for path in now) for then, now in itertools.pairwise(seen)]
    assert changed == [False, True, False, True]
    assert all(np.any(h) for path, h in seen[0].items() if "embed" not in path)
    assert step.sentinel.traces["estimate of the curvature"] == 1


def test_compiled_equals_eager():
    for a, b in zip(*(trained(4, compile=c)[2].items() for c in (True, False)), strict=True):
        np.testing.assert_allclose(np.array(a[1]), np.array(b[1]), rtol=2e-4, atol=2e-5, err_msg=a[0])


def test_counts_go_on_after_a_restart():
    """What is due is read from the optimizer's own count, which a checkpoint holds."""
    model, optimizer, loss, source = parts(*SOPHIA)
    step = TrainStep(model, optimizer, loss)
    mx.eval(step(source.batch(0)), step.state)
    again = TrainStep(model, optimizer, loss)
    assert not curvature.is_due(optimizer, optimizer.state["step"])
    mx.eval(again(source.batch(1)), again.state)
    assert "estimate of the curvature" not in again.sentinel.traces
    assert curvature.is_due(optimizer, optimizer.state["step"])


def test_others_estimate_nothing():
    assert curvature.curved(parts("optim=adamw")[1]) is None


def test_groups():
    """Each takes its part of one gradient."""
    cfg = lmxexp.compose(["optim=sophia", "param_groups=[vector]"])
    optimizer = optimizer_of(cfg)
    model = build_model(cfg, vocab_size=9)
    optimizer.init(model.trainable_parameters())
    gradient = {path: mx.ones_like(a) for path, a in by_path(model.trainable_parameters()).items()}
    curvature.observe(optimizer, tree_unflatten(list(gradient.items())), mx.array(2.0))
    h = [a for path, a in by_path(optimizer.state).items() if path.endswith(".h")]
    assert len(h) == len(gradient)
    assert all(mx.allclose(a, mx.array(0.02)).item() for a in h)


def test_groups_that_estimate_at_different_steps_are_refused():
    groups = MultiOptimizer([Sophia(1e-3, estimate_every=2), Sophia(1e-3, estimate_every=3)], [lambda path, _: True])
    with pytest.raises(ConfigError, match=r"optim\.estimate_every=2 and 3 of two parameter groups"):
        curvature.curved(groups)


@pytest.mark.parametrize("settings", [{}, {"n_micro": 2}], ids=str)
def test_members_of_a_population_are_as_alone(settings):
    own = [["seed=1"], ["seed=2", "optim.learning_rate=3e-3"], ["seed=3", "schedule.warmup_steps=2"]]
    tolerance = rounding(3e-6 if settings else 0.0, 1e-3)
    assert_members([*SOPHIA, "model.dropout=0.1"], own, tolerance=tolerance, **settings)


def test_members_with_numbers_of_their_own():
    own = [[*SOPHIA, "optim.clip=0.1"], [*SOPHIA, "optim.betas=[0.9,0.9]", "optim.eps=1e-3", "optim.weight_decay=0"]]
    assert_members([], own, tolerance=rounding(1e-6, 1e-3))


def test_members_estimate_at_the_same_steps():
    with pytest.raises(NotMappable, match=r"optim\.estimate_every is 2, 3"):
        population([], [SOPHIA, [*SOPHIA, "optim.estimate_every=3"]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"betas": [0.9, 1.0]}, r"optim.betas=\[0.9, 1.0\] must be two numbers"),
        ({"clip": 0}, "optim.clip=0 must be above 0"),
        ({"eps": 0}, "optim.eps=0 must be above 0"),
        ({"estimate_every": 0}, r"optim\.estimate_every=0 must be a whole number, at least 1"),
        ({"estimate_every": 2.5}, r"optim\.estimate_every=2.5 must be a whole number, at least 1"),
        ({"weight_decay": -1}, "optim.weight_decay=-1 must not be negative"),
    ],
)
def test_bad_settings(settings, message):
    cfg = lmxexp.compose(["optim=sophia", *(f"optim.{key}={value}" for key, value in settings.items())])
    with pytest.raises(ConfigError, match=f"^{message}"):
        optimizer_of(cfg)
