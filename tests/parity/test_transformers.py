"""Every preset that transformers has too: logits, loss and the gradient of every parameter, from our exported directory."""

import mlx.core as mx
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from lmxexp.export.write import family_names, load_family  # noqa: E402
from tests.contracts.small_models import PRESETS  # noqa: E402
from tests.parity.harness import (  # noqa: E402
    SHAPES,
    check_gradients,
    export_to,
    make,
    our_loss_and_gradients,
    random_tokens,
    relative_error,
)

torch.set_num_threads(1)
FAMILIES = [f for f in family_names() if getattr(load_family(f), "IN_TRANSFORMERS", True)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family_name", FAMILIES)
def test_logits_loss_and_gradients(family_name, shape, tmp_path):
    assert family_name in PRESETS, "a family is named like the preset that it belongs to"
    model, cfg = make([f"model={family_name}", *SHAPES[shape]])
    family = export_to(model, cfg, tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    tokens = random_tokens()
    ids = torch.tensor(tokens)
    # Its own training mode: some models take another path in evaluation. There is no dropout in the configurations.
    out = reference.train()(ids, labels=ids, use_cache=False)
    logits = model(mx.array(tokens))
    assert relative_error(logits, out.logits.detach().numpy()) < 1e-4
    loss, gradients = our_loss_and_gradients(model, tokens)
    assert abs(loss - out.loss.item()) < 1e-4 * abs(out.loss.item())
    out.loss.backward()
    theirs = {
        name: p.grad.numpy() if p.grad is not None else 0 * p.detach().numpy()
        for name, p in reference.named_parameters()
    }
    check_gradients(family, model, gradients, theirs, tolerance=1e-3)
