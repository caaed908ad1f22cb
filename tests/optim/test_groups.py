"""Parameter groups: who belongs where, each group's own rule against the float64 reference, and what is refused."""

import functools

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

import lmxexp
from lmxexp.interfaces import ConfigError
from lmxexp.optim.adamw import AdamW
from lmxexp.optim.build import build_optimizer, groups_of, learning_rates, optimizer_of
from lmxexp.optim.groups import ParameterGroup
from lmxexp.optim.lion import Lion
from lmxexp.optim.roles import role_of
from lmxexp.schedule.cosine import Cosine
from tests.optim.toy_problem import FEW, SHAPES, STEPS, assert_same, by_mlx, by_reference, start, to_flat, to_tree
from tests.population.close import rounding
from tests.population.test_step import assert_members
from tests.reference import optimizers as reference

ADAM = {"betas": [0.9, 0.95], "eps": 1e-8}
ADAMW = functools.partial(AdamW, learning_rate=1e-2, weight_decay=0.3, **ADAM)
SCHEDULE = Cosine(steps=STEPS, warmup_steps=5, final=0.1)
GROUPS = {
    "vector": ParameterGroup(role="vector", learning_rate=3e-2),
    "first": ParameterGroup(path="layers.0.*", settings={"betas": [0.8, 0.99]}, weight_decay=0.1),
    "embedding": ParameterGroup(role="embedding", optim=functools.partial(Lion, learning_rate=2e-3, weight_decay=0.2)),
}


def ready(names=tuple(SHAPES)):
    optimizer = build_optimizer(ADAMW, SCHEDULE, GROUPS)
    parameters = to_tree({name: start()[name] for name in names})
    optimizer.init(parameters)
    return optimizer, parameters


@pytest.mark.parametrize(
    ("path", "shape", "role"),
    [
        ("embedding.embed_tokens.weight", (9, 4), "embedding"),
        ("lm_head.weight", (9, 4), "head"),
        ("layers.0.self_attn.q_proj.weight", (4, 4), "matrix"),
        ("layers.0.mlp.experts.weight", (2, 4, 4), "matrix"),
        ("layers.0.conv1d.weight", (4, 3), "vector"),
        ("layers.0.q_proj.bias", (4,), "vector"),
        ("norm.weight", (4,), "vector"),
        ("layers.0.mixer.A_log", (4, 3), "vector"),
    ],
)
def test_roles(path, shape, role):
    assert role_of(path, mx.zeros(shape)) == role


def test_each_group_follows_its_own_rule():
    def rule_of(name, p):
        decay = lambda d: d if p.ndim >= 2 else 0.0
        if p.ndim < 2:
            return reference.adamw, 3e-2, ADAM
        if name.startswith("layers.0."):
            return reference.adamw, 1e-2, {"betas": [0.8, 0.99], "eps": 1e-8, "weight_decay": decay(0.1)}
        if "embed" in name:
            return reference.lion, 2e-3, {"betas": [0.9, 0.99], "weight_decay": 0.2}
        return reference.adamw, 1e-2, ADAM | {"weight_decay": decay(0.3)}

    assert_same(to_flat(by_mlx(*ready())), by_reference(rule_of), 1e-5)


def test_the_first_that_takes_a_parameter_has_it():
    optimizer, parameters = ready()
    found = {group.name: set(group.parameters) for group in groups_of(optimizer, parameters)}
    assert found == {
        "vector": {name for name, shape in SHAPES.items() if len(shape) < 2},
        "first": {"layers.0.q_proj.weight", "layers.0.conv1d.weight"},
        "embedding": {"embed_tokens.weight"},
        "default": {
            "layers.1.up_proj.weight",
            "layers.1.down_proj.weight",
            "layers.1.experts.weight",
            "lm_head.weight",
        },
    }
    state_bytes = {group.name: group.state_bytes for group in groups_of(optimizer, parameters)}
    assert state_bytes["embedding"] == 4 * 66  # Lion's one moment
    assert state_bytes["first"] == 8 * (36 + 36)


def test_every_learning_rate_is_logged():
    optimizer, parameters = ready()
    by_mlx(optimizer, parameters, range(1))
    factor = SCHEDULE(mx.array(0)).item()
    expected = {"": 1e-2, "/vector": 3e-2, "/first": 1e-2, "/embedding": 2e-3, "/default": 1e-2}
    found = {name: value.item() for name, value in learning_rates(optimizer).items()}
    assert found == pytest.approx({f"train/lr{name}": peak * factor for name, peak in expected.items()})


def test_groups_within_groups_have_names_of_both():
    optimizer = optimizer_of(lmxexp.compose(["optim=muon", "param_groups=[embedding]", "optim.learning_rate=0.02"]))
    optimizer.init(to_tree(start()))
    names = ["train/lr", "train/lr/embedding/muon", "train/lr/embedding/adamw"]
    names += ["train/lr/default/muon", "train/lr/default/adamw"]
    assert list(learning_rates(optimizer)) == names
    assert learning_rates(optimizer)["train/lr"] is learning_rates(optimizer)["train/lr/default/muon"]


@pytest.mark.parametrize(
    "own",
    [
        [],
        ["param_groups.embedding.weight_decay=0.2"],
        ["param_groups.embedding.settings={betas:[0.9,0.99]}", "param_groups.embedding.weight_decay=0"],
        ["+optim@param_groups.embedding.optim=lion"],
        ["optim=cautious"],
        ["optim=muon", "param_groups.embedding.settings={adamw:{weight_decay:0}}"],
    ],
)
def test_groups_of_the_configuration_follow_the_schedule(own):
    cfg = lmxexp.compose(["param_groups=[embedding]", "schedule.warmup_steps=10", "train.steps=20", *own])
    optimizer = optimizer_of(cfg)
    optimizer.init(to_tree(start()))
    peaks = {name: rate.item() * 11 for name, rate in learning_rates(optimizer).items()}  # the first step of warmup
    expected = dict.fromkeys(peaks, 0.001)
    if own and own[0] == "optim=muon":
        expected |= {name: cfg.optim.learning_rate for name in peaks if name == "train/lr" or name.endswith("/muon")}
    if own and own[0].endswith("=lion"):
        expected["train/lr/embedding"] = cfg.param_groups.embedding.optim.learning_rate
    assert peaks == pytest.approx(expected)


def test_a_group_of_the_configuration_with_a_setting_that_its_optimizer_lacks():
    cfg = lmxexp.compose(["optim=adam", "param_groups=[embedding]", "param_groups.embedding.weight_decay=0.1"])
    with pytest.raises(
        ConfigError, match=r"param_groups.embedding.weight_decay=0.1 is no setting of Adam: it takes le"
    ):
        optimizer_of(cfg)


def test_a_setting_of_a_factory_within():
    cfg = lmxexp.compose(
        ["optim=muon", "param_groups=[embedding]", "param_groups.embedding.settings={adamw:{learning_rate:0.5}}"]
    )
    optimizer = optimizer_of(cfg)
    optimizer.init(to_tree(start()))
    rates = {name: value.item() for name, value in learning_rates(optimizer).items()}
    factor = rates["train/lr/embedding/adamw"] / 0.5
    assert rates["train/lr/default/adamw"] == pytest.approx(1e-3 * factor)


def test_compiled_in_one_trace_and_resumed_to_the_bit():
    optimizer, parameters = ready([*FEW, "layers.0.q_proj.weight"])
    gradients = to_tree({name: np.ones(SHAPES[name]) for name in [*FEW, "layers.0.q_proj.weight"]})
    eager, expected = ready([*FEW, "layers.0.q_proj.weight"])
    for _ in range(3):
        expected = eager.apply_gradients(gradients, expected)
    traces, state = [], [parameters, optimizer.state]

    def step(gradients):
        traces.append(1)
        parameters.update(optimizer.apply_gradients(gradients, parameters))

    compiled = mx.compile(step, inputs=state, outputs=state)
    for _ in range(3):
        compiled(gradients)
        mx.eval(state)
    assert len(traces) == 1
    for (name, a), (_, b) in zip(tree_flatten(parameters), tree_flatten(expected), strict=True):
        assert mx.allclose(a, b, rtol=1e-6, atol=1e-7).item(), name

    other, _ = ready([*FEW, "layers.0.q_proj.weight"])
    other.state = tree_unflatten(tree_flatten(eager.state))
    a, b = (tree_flatten(o.apply_gradients(gradients, expected)) for o in (eager, other))
    assert all(mx.array_equal(x, y).item() for (_, x), (_, y) in zip(a, b, strict=True))


def test_members_of_a_population_have_settings_of_their_own():
    groups = ["param_groups=[embedding,vector]", "model.dropout=0.1"]
    own = [["seed=1"], ["seed=2", "param_groups.embedding.learning_rate=3e-3"]]
    own[0].append("param_groups.embedding.learning_rate=1e-2")
    assert_members(groups, own, tolerance=rounding(0.0))


def test_a_group_of_nothing_is_refused():
    optimizer = build_optimizer(ADAMW, SCHEDULE, {"norms": ParameterGroup(role="matrix", path="*norm*")})
    with pytest.raises(ConfigError, match=r"param_groups.norms.role=matrix, param_groups.norms.path=\*norm\* takes no"):
        optimizer.init(to_tree(start()))
    twice = {"a": ParameterGroup(role="vector"), "b": ParameterGroup(path="*norm*")}
    with pytest.raises(ConfigError, match=r"param_groups.b.path=\*norm\* takes no parameter, or those before it"):
        build_optimizer(ADAMW, SCHEDULE, twice).init(to_tree(start()))


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (ParameterGroup(settings={"beta": 1}), "param_groups.g.settings.beta=1 is no setting of AdamW: it takes learn"),
        (ParameterGroup(learning_rate=-1.0), "param_groups.g.learning_rate=-1.0 must be above 0"),
        (ParameterGroup(weight_decay=-1.0), "param_groups.g.weight_decay=-1.0 "),
    ],
)
def test_settings_that_cannot_work_are_refused(group, message):
    with pytest.raises(ConfigError, match=message):
        build_optimizer(ADAMW, SCHEDULE, {"g": group})


def test_groups_of_the_configuration():
    cfg = lmxexp.compose(
        [
            "param_groups=[vector,embedding]",
            "+optim@param_groups.embedding.optim=lion",
            "param_groups.vector.path=*norm*",
        ]
    )
    optimizer = optimizer_of(cfg)
    optimizer.init(to_tree(start()))
    kinds = {group.name: type(group.optimizer).__name__ for group in groups_of(optimizer, to_tree(start()))}
    assert kinds == {"vector": "AdamW", "embedding": "Lion", "default": "AdamW"}
