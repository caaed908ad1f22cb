"""Adam's relatives do what their papers say: 50 steps against float64 references, and those against other packages."""

import functools

import mlx.core as mx
import numpy as np
import pytest
from mlx.optimizers import clip_grad_norm
from mlx.utils import tree_flatten, tree_unflatten

import lmxexp
from lmxexp.build import build
from lmxexp.interfaces import ConfigError
from lmxexp.optim.adam_mini import AdamMini
from lmxexp.optim.adamw import AdamW
from lmxexp.optim.ademamix import AdEMAMix
from lmxexp.optim.adopt import ADOPT
from lmxexp.optim.build import build_optimizer
from lmxexp.optim.lamb import LAMB
from lmxexp.optim.mars import MARS
from lmxexp.optim.nadamw import NAdamW
from lmxexp.optim.signum import Signum
from lmxexp.schedule.cosine import Cosine
from tests.optim import toy_problem
from tests.optim.test_every_optim_yaml import compile_step
from tests.optim.test_published_optimizers import decay_of, groups, solve, solve_by_torch
from tests.optim.toy_problem import (
    MAX_NORM,
    STEPS,
    assert_same,
    by_reference,
    factor,
    gradient,
    start,
    to_flat,
    to_tree,
)
from tests.population.close import rounding
from tests.population.test_step import assert_members
from tests.reference import adam_family as reference
from tests.reference import optimizers as usual

ADAM = {"betas": [0.9, 0.95], "eps": 1e-8}
NADAM = ADAM | {"momentum_decay": 4e-3}
NEAR_ONE = {"betas": [0.9999, 0.9999], "eps": 1e-8, "momentum_decay": 3.0}
MIX = {"betas": [0.9, 0.999], "eps": 1e-8, "alpha": 8.0, "beta3": 0.9999}
LATE = {"betas": [0.9, 0.9999], "eps": 1e-6, "clip_exponent": 0.25}
REDUCED = {"betas": [0.95, 0.99], "eps": 1e-8, "gamma": 0.025}
DECAY = 0.3

# name: (class, reference rule, peak learning rate, settings)
CASES = {
    "nadamw": (NAdamW, reference.nadamw, 1e-2, NADAM),
    "nadamw_betas_near_one": (NAdamW, reference.nadamw, 1e-2, NEAR_ONE),
    "nadamw_constant_momentum": (NAdamW, reference.nadamw, 1e-2, NADAM | {"momentum_decay": 0.0}),
    "signum": (Signum, reference.signum, 1e-2, {"momentum": 0.9}),
    "signum_no_momentum": (Signum, reference.signum, 1e-2, {"momentum": 0.0}),
    "ademamix": (AdEMAMix, reference.ademamix, 1e-2, MIX),
    "ademamix_rising": (AdEMAMix, reference.ademamix, 1e-2, MIX | {"alpha_steps": STEPS, "beta3_steps": STEPS}),
    "ademamix_risen": (AdEMAMix, reference.ademamix, 1e-2, MIX | {"alpha_steps": 20, "beta3_steps": 30}),
    "adopt": (ADOPT, reference.adopt, 1e-2, LATE),
    "adopt_no_clip": (ADOPT, reference.adopt, 1e-2, LATE | {"betas": [0.9, 0.99], "clip_exponent": None}),
    "mars": (MARS, reference.mars, 1e-2, REDUCED),
    "mars_all_of_it": (MARS, reference.mars, 1e-2, REDUCED | {"gamma": 1.0}),
    "lamb": (LAMB, reference.lamb, 1e-2, ADAM | {"eps": 1e-6}),
    "adam_mini": (AdamMini, reference.adam_mini, 1e-2, ADAM),
}
KINDS = ["nadamw", "signum", "ademamix", "adopt", "mars", "lamb", "adam_mini"]


def by_name(rule, name, p):
    """What a rule is told about a parameter."""
    stacked = "experts" in name
    if rule is reference.mars:
        return {"stacked": stacked, "corrected": p.ndim >= 2}
    if rule is reference.lamb:
        return {"stacked": stacked, "scaled": p.ndim >= 2}
    if rule is reference.adam_mini:
        return {"n_outer": 1 if "bias" in name else 2 if stacked else min(1, p.ndim - 1)}
    return {}


def expected(case):
    _, rule, peak, settings = CASES[case]
    return by_reference(lambda name, p: (rule, peak, settings | decay_of(p, DECAY) | by_name(rule, name, p)))


def factory(case):
    kind, _, peak, settings = CASES[case]
    return functools.partial(kind, learning_rate=peak, weight_decay=DECAY, **settings)


@pytest.mark.parametrize("case", CASES)
def test_is_the_published_optimizer(case):
    assert_same(solve(factory(case)), expected(case), 1e-5)


def test_mars_clips_only_norms_above_one(monkeypatch):
    """With gradients of this global norm some parameters' norms are above 1 and some below."""
    max_norm = 2.6
    monkeypatch.setattr(toy_problem, "MAX_NORM", max_norm)
    norms = [np.linalg.norm(g) for g in usual.clip(gradient(start(), 0), max_norm).values() if g.ndim >= 2]
    assert min(norms) < 0.9
    assert max(norms) > 1.1
    assert_same(solve(factory("mars")), expected("mars"), 1e-5)


def test_ademamix_compiled_follows_its_schedules():
    """The step is compiled once, and alpha and beta3 go on rising."""
    optimizer = build_optimizer(factory("ademamix_risen"), Cosine(steps=STEPS, warmup_steps=5, final=0.1))
    parameters = to_tree(start())
    optimizer.init(parameters)
    step, traces = compile_step(optimizer, parameters)
    for i in range(STEPS):
        gradients, _ = clip_grad_norm(to_tree(gradient(to_flat(parameters), i)), MAX_NORM)
        step(gradients)
        mx.eval(parameters, optimizer.state)
    assert len(traces) == 1
    assert_same(to_flat(parameters), expected("ademamix_risen"), 1e-5)


def test_ademamix_rises_over_the_run():
    optimizer = build_optimizer(build(lmxexp.compose(["optim=ademamix", "train.steps=77"]).optim), lambda step: step)
    assert (optimizer.alpha_steps, optimizer.beta3_steps) == (77, 77)


def test_adam_mini_has_half_the_state():
    optimizer = AdamMini(0.1)
    optimizer.init(to_tree(start()))
    shapes = {name.removesuffix(".v"): a.shape for name, a in tree_flatten(optimizer.state) if name.endswith(".v")}
    assert shapes == {
        "embed_tokens.weight": (11, 1),
        "layers.0.norm.weight": (1,),
        "layers.0.q_proj.weight": (6, 1),
        "layers.0.q_proj.bias": (6,),
        "layers.0.conv1d.weight": (6, 1, 1),
        "layers.1.norm.weight": (1,),
        "layers.1.up_proj.weight": (9, 1),
        "layers.1.down_proj.weight": (6, 1),
        "layers.1.experts.weight": (3, 5, 1),
        "layers.2.norm.weight": (1,),
        "lm_head.weight": (11, 1),
    }


def test_lamb_moves_zeros_as_adamw_does():
    parameters = {"q_proj": {"weight": mx.zeros((3, 4))}, "norm": {"weight": mx.ones(4)}, "scale": mx.array(0.0)}
    gradients = {"q_proj": {"weight": mx.ones((3, 4))}, "norm": {"weight": mx.ones(4)}, "scale": mx.array(1.0)}
    found, want = (kind(0.1).apply_gradients(gradients, parameters) for kind in (LAMB, AdamW))
    for (name, a), (_, b) in zip(tree_flatten(found), tree_flatten(want), strict=True):
        assert mx.allclose(a, b, rtol=1e-5).item(), name


def test_lamb_with_a_learning_rate_of_zero_stands_still():
    optimizer = LAMB(lambda step: mx.array(0.0))
    found = to_flat(optimizer.apply_gradients(to_tree(gradient(start(), 0)), to_tree(start())))
    for name, p in start().items():
        np.testing.assert_array_equal(found[name], p, err_msg=name)


@pytest.mark.parametrize("kind", [AdamMini, ADOPT, MARS, LAMB], ids=lambda kind: kind.__name__)
def test_numbers_and_single_rows_are_parameters_too(kind):
    parameters = {"scale": mx.array(2.0), "q_proj": {"weight": mx.ones((1, 3)), "bias": mx.ones(1)}}
    optimizer = kind(0.1)
    for _ in range(3):
        new = optimizer.apply_gradients(tree_unflatten(tree_flatten(parameters)), parameters)
    for (name, a), (_, b) in zip(tree_flatten(new), tree_flatten(parameters), strict=True):
        assert a.shape == b.shape, name
        assert mx.isfinite(a).all().item()
        assert not mx.array_equal(a, b).item()


# --- populations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_what_they_are_alone(kind):
    assert_members([f"optim={kind}"], tolerance=rounding(0.0))


@pytest.mark.parametrize(
    "own",
    [
        ["optim=nadamw", "optim.betas=[0.9,0.999]", "optim.momentum_decay=0.1", "optim.eps=1e-3"],
        ["optim=signum", "optim.momentum=0.5", "optim.weight_decay=0"],
        ["optim=ademamix", "optim.betas=[0.8,0.99]", "optim.beta3=0.999", "optim.alpha=2", "optim.alpha_steps=5"],
        ["optim=ademamix", "optim.beta3_steps=2"],
        ["optim=adopt", "optim.betas=[0.8,0.999]", "optim.clip_exponent=0.5", "optim.eps=1e-4"],
        ["optim=mars", "optim.betas=[0.9,0.95]", "optim.gamma=0.5"],
        ["optim=lamb", "optim.betas=[0.8,0.99]", "optim.weight_decay=0.5", "optim.eps=1e-3"],
        ["optim=adam_mini", "optim.betas=[0.8,0.999]", "optim.weight_decay=0"],
    ],
    ids=lambda own: " ".join(own[:2]),
)
def test_members_with_numbers_of_their_own(own):
    # They are arrays there and Python's numbers alone: as close as fp32 is.
    assert_members([], [[own[0]], own], tolerance=rounding(1e-6))


# --- bad settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (NAdamW, {"betas": [0.9, 1.0]}, r"optim.betas=\[0.9, 1.0\] must be two numbers"),
        (NAdamW, {"eps": 0}, "optim.eps=0 must be above 0"),
        (NAdamW, {"momentum_decay": -1}, "optim.momentum_decay=-1 must not be negative"),
        (NAdamW, {"weight_decay": -1}, "optim.weight_decay=-1 must not be negative"),
        (Signum, {"momentum": 1}, r"optim.momentum=1 must lie in \[0, 1\)"),
        (Signum, {"weight_decay": -1}, "optim.weight_decay=-1 must not be negative"),
        (AdEMAMix, {"betas": [0.9, 0.999, 0.9999]}, "optim.betas=.* must be two numbers"),
        (AdEMAMix, {"alpha": -1}, "optim.alpha=-1 must not be negative"),
        (AdEMAMix, {"beta3": 1.0}, r"optim.beta3=1.0 must lie in \[0, 1\)"),
        (AdEMAMix, {"alpha_steps": 0}, "optim.alpha_steps=0 must be at least 1"),
        (AdEMAMix, {"beta3_steps": -5}, "optim.beta3_steps=-5 must be at least 1"),
        (ADOPT, {"betas": [0.9]}, "optim.betas="),
        (ADOPT, {"eps": -1}, "optim.eps=-1 must be above 0"),
        (ADOPT, {"clip_exponent": 0}, "optim.clip_exponent=0 must be above 0"),
        (MARS, {"gamma": -0.1}, "optim.gamma=-0.1 must not be negative"),
        (MARS, {"gamma": float("nan")}, "optim.gamma=nan must not be negative"),
        (MARS, {"betas": [1, 0.9]}, "optim.betas="),
        (LAMB, {"weight_decay": -1}, "optim.weight_decay=-1 must not be negative"),
        (LAMB, {"eps": 0}, "optim.eps=0 must be above 0"),
        (AdamMini, {"betas": [-0.1, 0.9]}, "optim.betas="),
        (AdamMini, {"weight_decay": -1}, "optim.weight_decay=-1 must not be negative"),
    ],
)
def test_bad_settings(kind, settings, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        build_optimizer(functools.partial(kind, learning_rate=1e-3, **settings), lambda step: step)


# --- the references themselves, against other packages in float64 -----------------------------------------------------


@pytest.fixture
def float64_in_torch():
    """Its NAdam keeps the product of its momenta in the default type."""
    torch = pytest.importorskip("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("nadamw")])
def test_nadamw_reference_agrees_with_torch(case, float64_in_torch):
    torch = pytest.importorskip("torch")
    _, _, peak, settings = CASES[case]

    def make(parameters):
        return [torch.optim.NAdam(groups(parameters, DECAY), lr=peak, decoupled_weight_decay=True, **settings)]

    assert_same(solve_by_torch(make, list(start())), expected(case), 1e-10)


@pytest.mark.parametrize(
    "case", ["signum", "signum_no_momentum", "ademamix", "ademamix_rising", "adopt", "adopt_no_clip"]
)
def test_references_agree_with_pytorch_optimizer(case):
    package = pytest.importorskip("pytorch_optimizer")
    _, _, peak, settings = CASES[case]
    settings = dict(settings)
    if "beta3" in settings:  # it has one number of steps for both schedules
        settings["betas"] = [*settings["betas"], settings.pop("beta3")]
        settings["t_alpha_beta3"] = settings.pop("alpha_steps", None)
        settings.pop("beta3_steps", None)
    if "clip_exponent" in settings:
        # The authors count the first clipped step as 1, as the paper does; this package counts it as 2.
        exponent = settings.pop("clip_exponent")
        settings["clip_lambda"] = None if exponent is None else lambda step: (step - 1) ** exponent

    def make(parameters):
        kinds = {"signum": package.SignSGD, "ademamix": package.AdEMAMix, "adopt": package.ADOPT}
        kind = kinds[case.split("_")[0]]
        return [kind(groups(parameters, DECAY), lr=peak, weight_decouple=True, **settings)]

    assert_same(solve_by_torch(make, list(start())), expected(case), 1e-10)


@pytest.mark.parametrize("case", ["adopt", "adopt_no_clip"])
def test_adopt_reference_agrees_with_the_authors_code(case):
    """It has no decay at the first step."""
    package = pytest.importorskip("adopt")
    _, rule, peak, settings = CASES[case]
    exponent = settings["clip_exponent"]

    def make(parameters):
        same = {name: settings[name] for name in ("betas", "eps")}
        clip = None if exponent is None else lambda step: step**exponent
        return [package.ADOPT(groups(parameters, DECAY), lr=peak, decouple=True, clip_lambda=clip, **same)]

    def without_first_decay(p, g, state, t, lr, *, weight_decay, **settings):
        return rule(p, g, state, t, lr, weight_decay=weight_decay if t > 1 else 0.0, **settings)

    found = solve_by_torch(make, list(start()))
    assert_same(found, by_reference(lambda _, p: (without_first_decay, peak, settings | decay_of(p, DECAY))), 1e-10)


@pytest.mark.parametrize("case", ["mars", "mars_all_of_it"])
def test_mars_reference_agrees_with_pytorch_optimizer(case):
    """It has a last gradient of 0 at the first step, as the authors' code, so it begins without correction here. It
    adds 1e-15 to the mean square and eps before it corrects the bias, so both are nothing here. And it knows no stacks.
    """
    package = pytest.importorskip("pytorch_optimizer")
    _, rule, peak, settings = CASES[case]
    settings = settings | {"eps": 1e-30}

    class WithoutFirstCorrection(package.MARS):
        apply_ams_bound_foreach = staticmethod(
            functools.partial(package.MARS.apply_ams_bound_foreach, exp_avg_sq_eps=0.0)
        )

        def step(self, closure=None):
            for group in self.param_groups:
                group["gamma"] = settings["gamma"] if self.state else 0.0
            return super().step(closure)

    def make(parameters):
        vectors = {"lr_1d": peak, "betas_1d": settings["betas"], "weight_decay_1d": 0.0}
        return [WithoutFirstCorrection(groups(parameters, DECAY), lr=peak, **settings, **vectors)]

    def rule_of(name, p):
        return rule, peak, settings | decay_of(p, DECAY) | {"corrected": p.ndim >= 2}

    assert_same(solve_by_torch(make, list(start())), by_reference(rule_of), 1e-10)


def test_lamb_reference_agrees_with_optax():
    """optax corrects the bias and knows no stacks; pytorch_optimizer corrects no bias and cuts norms off at 10."""
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    _, rule, peak, settings = CASES["lamb"]
    betas = dict(zip(("b1", "b2"), settings["betas"], strict=True))

    def schedule(step):
        return peak * factor(int(step))

    with jax.enable_x64(True):
        parameters = {name: jax.numpy.asarray(p) for name, p in start().items()}
        optimizers = {
            name: optax.lamb(schedule, **betas, eps=settings["eps"], weight_decay=DECAY)
            if p.ndim >= 2
            else optax.adam(schedule, **betas, eps=settings["eps"])
            for name, p in parameters.items()
        }
        states = {name: optimizer.init(parameters[name]) for name, optimizer in optimizers.items()}
        for step in range(STEPS):
            now = {name: np.asarray(p) for name, p in parameters.items()}
            for name, g in usual.clip(gradient(now, step), MAX_NORM).items():
                g = jax.numpy.asarray(g)
                updates, states[name] = optimizers[name].update(g, states[name], parameters[name])
                parameters[name] = optax.apply_updates(parameters[name], updates)
        found = {name: np.asarray(p) for name, p in parameters.items()}

    def rule_of(name, p):
        return rule, peak, settings | decay_of(p, DECAY) | {"scaled": p.ndim >= 2}

    assert_same(found, by_reference(rule_of), 1e-10)


def test_adam_mini_reference_agrees_with_the_authors_code():
    """It tells parameters apart by name and takes two axes for granted; heads of one row are rows."""
    package = pytest.importorskip("adam_mini")
    _, _, peak, settings = CASES["adam_mini"]

    def make(parameters):
        matrices = {"conv1d": (6, 6), "up_proj": (9, 6), "down_proj": (6, 9), "experts": (15, 4)}
        views = {}
        for name, p in parameters.items():
            module = name.split(".")[-2]
            if module in matrices:
                view = p.data.view(matrices[module]).requires_grad_()
                views[f"mlp.{name}"] = (view, p)
            else:
                views[name] = (p, p)
        named = [(name, view) for name, (view, _) in views.items()]

        class OfViews(package.Adam_mini):
            def step(self, closure=None):
                for view, p in views.values():
                    view.grad = p.grad.view(view.shape)
                return super().step(closure)

        return [OfViews(named, lr=peak, weight_decay=DECAY, dim=6, n_heads=6, verbose=False, **settings)]

    assert_same(solve_by_torch(make, list(start())), expected("adam_mini"), 1e-10)
