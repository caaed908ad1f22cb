"""``flops_per_token`` against a count of the operations that a forward pass performs."""

import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from tests.contracts.small_models import PRESETS, SHORT, VOCAB, kinds, small_config, small_model, tokens
from tests.reference.count_flops import forward_flops

LENGTHS = (40, 77)
# The groups whose kinds make products of matrices, each kind at least once.
GROUPS = ("attention", "ffn", "block", "embedding")
KINDS = [
    [f"{group}={kinds(group)[i % len(kinds(group))]}" for group in GROUPS]
    for i in range(max(len(kinds(group)) for group in GROUPS))
]
MODELS = [*([f"model={preset}"] for preset in PRESETS), *KINDS]


def check(cfg, lengths):
    cfg.train.seq_len = max(lengths)
    model = instantiate(cfg.model.net, _convert_="all")(vocab_size=VOCAB)
    model.eval()
    for length in lengths:
        counted = forward_flops(model, tokens(1, length)) / length
        assert model.flops_per_token(length) / 3 == pytest.approx(counted, rel=0.01), f"length {length}"


@pytest.mark.parametrize("overrides", MODELS, ids=" ".join)
def test_flops_are_those_performed(overrides):
    check(small_config(*overrides), LENGTHS)


@pytest.mark.parametrize("overrides", KINDS, ids=" ".join)
def test_flops_with_larger_chunks_and_windows(overrides):
    cfg = small_config(*overrides)
    for key in SHORT:
        lengthen(cfg.model, key, 33)
    check(cfg, [150])


def test_flops_of_modules_ahead():
    """Which predict further tokens, from one position less each."""
    model = small_model("loss=multi_token")

    def everything(x):
        h, _ = model.hidden(x)
        further, _ = model.look_ahead(h, x)
        return [model.logits(h) for h in (h, *further)]

    counted = forward_flops(everything, tokens(1, 240)) / 240
    assert model.flops_per_token(240) / 3 == pytest.approx(counted, rel=0.01)


def lengthen(node, key, value):
    for name in node:
        if not OmegaConf.is_interpolation(node, name):
            if name == key and isinstance(node[name], int):
                node[name] = value
            elif isinstance(node[name], DictConfig):
                lengthen(node[name], key, value)
