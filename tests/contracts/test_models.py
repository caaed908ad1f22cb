"""What every kind of every group under conf/model promises, shown on a small model that uses it."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
import pytest
from hydra.utils import instantiate
from mlx.utils import tree_flatten

from lmxexp.interfaces import Batch, ConfigError
from lmxexp.loss.cross_entropy import CrossEntropy
from tests.contracts.small_models import (
    EVERY_KIND,
    LENGTH,
    PRESETS,
    VOCAB,
    choice,
    kinds,
    one_of_each_class,
    relative_error,
    small_config,
    small_model,
    tokens,
    tolerance,
    yaml_of,
)

MODELS = [f"model={p}" for p in PRESETS] + [choice(group, kind) for group, kind in EVERY_KIND]
# Each mixer that reads positions under each class of them, because masks, biases and offsets meet there.
MIXERS_AND_POSITIONS = [
    (f"attention={a}", f"position={p}")
    for a in kinds("attention")
    if "${model.position." in yaml_of("attention", a)
    for p in one_of_each_class("position")
]

every_model = pytest.mark.parametrize("overrides", [(m,) for m in MODELS], ids=" ".join)
and_positions = pytest.mark.parametrize("overrides", [(m,) for m in MODELS] + MIXERS_AND_POSITIONS, ids=" ".join)


def model_or_skip(*overrides):
    """A pair that is refused has nothing to promise; `test_pairs` looks at the refusals."""
    try:
        return small_model(*overrides)
    except Exception as error:
        if len(overrides) < 2 or not isinstance(
            error if isinstance(error, ConfigError) else error.__cause__, ConfigError
        ):
            raise
        pytest.skip(str(error))


@every_model
def test_shape_and_dtype(overrides):
    model = small_model(*overrides)
    assert model(tokens()).shape == (2, LENGTH, VOCAB)
    for dtype in (mx.float32, mx.bfloat16):
        model.set_dtype(dtype)
        h, _ = model.hidden(tokens())
        assert h.dtype == dtype, "a constant of another type has crept into the residual stream"
        assert mx.isfinite(model(tokens())).all().item()


@and_positions
def test_causal(overrides):
    """A token changes nothing before it, and something at or after it."""
    model = model_or_skip(*overrides)
    x = tokens(1)
    for t in (1, LENGTH // 2, LENGTH - 1):
        changed = mx.array(x)
        changed[:, t] = (x[:, t] + 1) % VOCAB
        a, b = model.hidden(x)[0], model.hidden(changed)[0]
        assert mx.array_equal(a[:, :t], b[:, :t]).item(), f"positions before {t} see it"
        assert not mx.allclose(a[:, t:], b[:, t:]).item()


SPLITS = [(1, 23), (10, 1, 13), (1,) * LENGTH]


@pytest.mark.parametrize(
    ("overrides", "split"),
    [((m,), split) for m in MODELS for split in SPLITS]
    + [(pair, SPLITS[1]) for pair in MIXERS_AND_POSITIONS]
    + [
        pytest.param(pair, split, marks=pytest.mark.exhaustive)
        for pair in MIXERS_AND_POSITIONS
        for split in (SPLITS[0], SPLITS[2])
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_cache_equals_no_cache(overrides, split):
    model = model_or_skip(*overrides)
    x = tokens()
    want = model(x)
    cache, got, start = model.make_cache(), [], 0
    for n in split:
        got.append(model(x[:, start : start + n], cache=cache))
        start += n
        for layer_cache in cache:
            assert layer_cache.offset == start
    assert relative_error(mx.concatenate(got, axis=1), want) < tolerance(model, x)


@every_model
def test_rows_are_independent(overrides):
    model = small_model(*overrides)
    x = tokens(3)
    assert relative_error(model(x)[1:2], model(x[1:2])) < tolerance(model, x)


@every_model
def test_every_parameter_gets_a_gradient(overrides):
    model = small_model(*overrides)
    batch = Batch(tokens(seed=1), tokens(seed=2))
    loss = CrossEntropy()
    _, gradient = nn.value_and_grad(model, lambda m: loss(m, batch)[0])(model)
    for path, g in tree_flatten(gradient):
        assert mx.isfinite(g).all().item(), path
        # A key's bias moves all scores of a query alike, which the softmax does not see: its gradient is zero.
        if not path.endswith("k_proj.bias") or "rope" in str(overrides):
            assert mx.abs(g).max().item() > 1e-7, f"{path} gets no gradient"


@every_model
def test_state_size_is_the_true_size(overrides):
    model = small_model(*overrides)
    for mixer in model.mixers():
        for length in (1, 3, LENGTH):
            cache = mixer.make_cache()
            mixer(mx.random.normal((1, length, 32)), cache=cache)
            assert sum(a.size for a in cache.state) == mixer.state_size(length)


@every_model
def test_compiled_equals_eager(overrides):
    model = small_model(*overrides)
    x = tokens()
    compiled = mx.compile(lambda x: model(x), inputs=[model.state])
    assert relative_error(compiled(x), model(x)) < 1e-5


@and_positions
def test_segments_are_isolated_or_refused(overrides):
    """With segment ids, a segment's outputs do not depend on the tokens of another."""
    model = model_or_skip(*overrides)
    x = tokens()
    changed = mx.array(x)
    changed[:, :10] = (x[:, :10] + 1) % VOCAB
    segment_ids = mx.array([[0] * 10 + [1] * (LENGTH - 10)] * 2)
    try:
        a = model.hidden(x, segment_ids=segment_ids)[0]
    except NotImplementedError:
        return
    b = model.hidden(changed, segment_ids=segment_ids)[0]
    assert mx.array_equal(a[:, 10:], b[:, 10:]).item()
    assert not mx.allclose(a[:, :10], b[:, :10]).item()
    one_segment = model.hidden(x, segment_ids=mx.zeros_like(segment_ids))[0]
    assert relative_error(one_segment, model.hidden(x)[0]) < 1e-5


@every_model
def test_checkpointing_changes_nothing(overrides):
    """Recomputed in the backward pass, with the parameters handed in, a model gives the same gradients."""
    model = small_model(*overrides)
    x = tokens()

    def loss(params):
        model.update(params)
        return model(x).square().mean()

    params = model.trainable_parameters()
    want = mx.grad(loss)(params)
    got = mx.grad(mx.checkpoint(loss))(params)
    model.update(params)
    for (path, a), (_, b) in zip(tree_flatten(got), tree_flatten(want), strict=True):
        # The floor is for gradients that are zero but for rounding, such as that of a key's bias.
        assert mx.abs(a - b).max().item() <= 1e-4 * mx.abs(b).max().item() + 1e-9, path


@every_model
def test_overfits_a_tiny_batch(overrides):
    """Starting as configured, a model learns eight sequences by heart."""
    cfg = small_config(*overrides)
    model = instantiate(cfg.model.net, _convert_="all")(vocab_size=VOCAB)
    if not model.mixers():
        return  # each token sees itself alone
    instantiate(cfg.model.init, _convert_="all")(model, mx.random.key(0))
    data = tokens(8, LENGTH + 1)
    batch = Batch(data[:, :-1], data[:, 1:])
    loss = CrossEntropy()
    optimizer = mlx.optimizers.Adam(learning_rate=1e-2, bias_correction=True)
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state]
    gradient = nn.value_and_grad(model, lambda m: loss(m, batch)[0])

    def step():
        value, g = gradient(model)
        g, _ = mlx.optimizers.clip_grad_norm(g, 1.0)
        optimizer.update(model, g)
        return value

    step = mx.compile(step, inputs=state, outputs=state)
    for n in range(120):
        value = step()
        mx.eval(value, state)
        if n % 10 == 0 and value.item() < 0.5 * 2.94:
            break
    # A sequence's first tokens cannot be told apart by what came before them; the rest is by heart.
    assert value.item() < 0.5 * 2.94, "random guessing costs ln 19 = 2.94"


@pytest.mark.parametrize("kind", kinds("attention"))
def test_window_limits_reach(kind):
    """A kind with a window sees that many positions and no more."""
    window = small_config(f"attention={kind}").model.attention.get("reach", {}).get("window")
    if window is None:
        return
    mixer = small_model(f"attention={kind}").mixers()[0]
    x = mx.random.normal((1, LENGTH, 32), key=mx.random.key(3))
    changed = mx.array(x)
    changed[:, 4] += 1.0
    moved = (mx.abs(mixer(x) - mixer(changed)).max(axis=-1) > 0)[0].tolist()
    assert moved == [4 <= t < 4 + window for t in range(LENGTH)]


@pytest.mark.parametrize("kind", [k for k in kinds("init") if k != "keep"])  # that one leaves weights to the model
def test_init_depends_on_the_key_alone(kind):
    cfg = small_config(f"init={kind}")

    def weights(key, noise):
        mx.random.seed(noise)
        model = instantiate(cfg.model.net, _convert_="all")(vocab_size=VOCAB)
        instantiate(cfg.model.init, _convert_="all")(model, mx.random.key(key))
        return dict(tree_flatten(model.parameters()))

    a, same, other = weights(1, 0), weights(1, 9), weights(2, 0)
    matrices = [name for name, p in a.items() if p.ndim == 2]
    assert matrices
    assert all(mx.array_equal(a[n], same[n]).item() for n in a)
    assert not any(mx.array_equal(a[n], other[n]).item() for n in matrices)
    # Equal shapes must not mean equal values.
    assert not mx.array_equal(a["layers.0.self_attn.q_proj.weight"], a["layers.1.self_attn.q_proj.weight"]).item()
