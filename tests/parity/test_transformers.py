"""Every family that transformers has: logits, loss and the gradient of every parameter, from our exported directory."""

import mlx.core as mx
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from lmxexp.export import parts  # noqa: E402
from lmxexp.export.families import gpt  # noqa: E402
from lmxexp.export.family import usual_name  # noqa: E402
from lmxexp.export.from_hf import from_hf  # noqa: E402
from lmxexp.export.write import load_family  # noqa: E402
from lmxexp.ops.activation import activation  # noqa: E402
from tests.contracts.small_models import PRESETS, VOCAB  # noqa: E402
from tests.parity.harness import (  # noqa: E402
    FAMILIES,
    SHAPES,
    VARIANTS,
    check_gradients,
    export_to,
    make,
    our_loss_and_gradients,
    preset_in,
    random_tokens,
    relative_error,
)

torch.set_num_threads(1)
KNOWN = [f for f in FAMILIES if getattr(load_family(f), "IN_TRANSFORMERS", True)]
CASES = [(f, shape, "") for f in KNOWN for shape in SHAPES]
CASES += [(f, "small", variant) for f in KNOWN for variant in VARIANTS.get(f, [])]


def load(directory, **options):
    """Their model of a directory; everything in it is used, and nothing made up."""
    reference, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", output_loading_info=True, **options
    )
    assert not any(info.values()), info
    return reference


def gradients_as_saved(family, reference, directory):
    """Its gradients under the names and in the shapes of its checkpoints, whatever they are in memory: written as if
    they were the weights."""
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    reference.save_pretrained(directory)
    saved = mx.load(str(directory / "model.safetensors"))
    return {usual_name(family, name): gradient for name, gradient in saved.items()}


@pytest.mark.parametrize(("family_name", "shape", "variant"), CASES, ids=lambda text: text or "preset")
def test_logits_loss_and_gradients(family_name, shape, variant, tmp_path):
    assert family_name in PRESETS, "a family is named like the preset that it belongs to"
    model, cfg = make([*preset_in(shape, family_name), *variant.split()])
    family = export_to(model, cfg, tmp_path)
    reference = load(tmp_path, dtype=torch.float32)
    tokens = random_tokens()
    ids = torch.tensor(tokens)
    # Its own training mode: some models take another path in evaluation. There is no dropout in the configurations.
    out = reference.train()(ids, labels=ids, use_cache=False)
    logits = model(mx.array(tokens))
    assert relative_error(logits, out.logits.detach().numpy()) < 1e-4
    loss, gradients = our_loss_and_gradients(model, tokens)
    assert abs(loss - out.loss.item()) < 1e-4 * abs(out.loss.item())
    out.loss.backward()
    theirs = gradients_as_saved(family, reference, tmp_path / "gradients")
    check_gradients(family, model, gradients, theirs, tolerance=1e-3)


@pytest.mark.parametrize("table", [parts.ACTIVATIONS, gpt.ACTIVATIONS], ids=["all", "gpt"])
def test_activations(table):
    """Two kinds of gelu hardly differ in a model's logits; here they do."""
    x = np.linspace(-4, 4, 1001).astype(np.float32)
    for ours, theirs in table.items():
        got = np.array(activation(ours)(mx.array(x)))
        assert np.abs(got - transformers.activations.ACT2FN[theirs](torch.tensor(x)).numpy()).max() < 2e-6, ours


@pytest.mark.parametrize("family_name", KNOWN)
def test_what_they_save_is_read(family_name, tmp_path):
    """Their own way to write a directory, in several files: we read it back bit by bit."""
    model, cfg = make(preset_in("small", family_name))
    export_to(model, cfg, tmp_path / "ours")
    load(tmp_path / "ours").save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    again = from_hf(vocab_size=VOCAB, path=str(tmp_path / "theirs"))
    tokens = mx.array(random_tokens())
    assert mx.array_equal(again(tokens), model(tokens)).item()
