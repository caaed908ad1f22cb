"""A whole step with all kernels of ours beside one without; without a CUDA device the host computes them."""

from collections import Counter
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from lmxexp.interfaces import Batch
from lmxexp.ops.trees import by_path
from lmxexp.profile import find
from lmxexp.train import precision
from lmxexp.train.step import to_arrays
from tests.ops.cuda_on_host import HAS_DEVICE, needs_kernels
from tests.train.composed import composed_step

SMALL = ["model.d_model=256", "model.n_heads=4", "model.n_layers=1", "model.d_ff=64", "train.seq_len=32"]
OURS = {
    *(
        "rms_norm_gradient",
        "rope_apart",
        "rope_together",
        "silu_halves",
        "silu_halves_gradient",
        "joined_2",
        "joined_3",
    ),
    *("rms_norm_of_sum", "nll", "logit_gradient", "rows", "sum_of_squares"),
}


def steps(overrides: list[str], chosen: str, remat: str) -> list[dict[str, float]]:
    """The scalars of two steps."""
    settings = {"compute_dtype": precision.compute_dtype(chosen), "remat": remat, "n_micro": 2, "compile": False}
    step = composed_step(*SMALL, *overrides, vocab_size=101, **settings)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(2):
        ids = rng.integers(0, 101, (4, 33)).astype(np.int32)
        scalars = step(Batch(ids[:, :-1], ids[:, 1:]))
        mx.eval(scalars, step.state)
        found.append({name: value.item() for name, value in scalars.items()})
    return found


@needs_kernels
@pytest.mark.parametrize(
    ("overrides", "chosen", "remat", "tolerance"),
    [
        (["embedding=tied"], "fp32", "none", 2e-5),
        (["embedding=untied"], "mixed", "none", 2e-3),
        (["embedding=untied", "model.n_layers=2"], "mixed", "block", 2e-3),
    ],
    ids=["fp32", "mixed", "mixed block"],
)
def test_the_scalars_are_those_of_the_twins(kernels, monkeypatch, overrides, chosen, remat, tolerance):
    monkeypatch.setattr("lmxexp.ops.embed._ONE_HOT_LIMIT_BESIDE_A_KERNEL", 0)
    ours = steps(overrides, chosen, remat)
    if not HAS_DEVICE:
        used = {name for name, _ in kernels}
        assert not [name for name in OURS if not any(f"lmxexp_{name}" in full for full in used)]
    monkeypatch.setenv("LMXEXP_CUDA_KERNELS", "0")
    for a, b in zip(ours, steps(overrides, chosen, remat), strict=True):
        assert a == pytest.approx(b, rel=tolerance)


@needs_kernels
@pytest.mark.parametrize("chosen", ["fp32", "mixed"])
def test_what_is_timed_by_itself_is_what_the_step_computes(kernels, monkeypatch, chosen):
    """A profile's whole pass: the kernels of the step, as often, but for those of the update; and gradients as good as
    without them."""
    monkeypatch.setattr("lmxexp.ops.embed._ONE_HOT_LIMIT_BESIDE_A_KERNEL", 0)
    dtype = precision.compute_dtype(chosen)
    step = composed_step(*SMALL, "model.n_layers=2", vocab_size=101, compute_dtype=dtype, compile=False)
    ids = np.random.default_rng(2).integers(0, 101, (2, 33)).astype(np.int32)
    batch = to_arrays(Batch(ids[:, :-1], ids[:, 1:]))
    part = find.whole(step.model, step.loss, batch)

    def gradients():
        return part.gradients(part.params, part.x, part.others, [mx.array(1.0)], dtype)

    ours = gradients()
    mx.eval(ours)
    if kernels is not None:
        timed = Counter(name for name, _ in kernels)
        kernels.clear()
        _, gradient, loss, _ = step._gradient(batch)
        mx.eval(gradient, loss)
        assert timed == Counter(name for name, _ in kernels)
        assert [name for name in timed if "rms_norm_of_sum" in name]
        assert [name for name in timed if "joined_3" in name]
    monkeypatch.setenv("LMXEXP_CUDA_KERNELS", "0")
    for a, b in zip(ours, gradients(), strict=True):
        assert a.dtype == b.dtype
        difference = mx.abs(a.astype(mx.float32) - b.astype(mx.float32)).max()
        assert difference <= (2e-5 if chosen == "fp32" else 0.03) * max(mx.abs(b).max().item(), 1e-3)


CONF = Path(__file__).parents[2] / "conf"
KINDS = [f"attention={file.stem}" for file in sorted((CONF / "model/attention").glob("*.yaml"))]
KINDS += ["model=gpt", "ffn=moe", "qk_norm=rmsnorm", "value_residual=learned", "block=parallel", "position=alibi"]


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_every_kind_are_those_of_the_twins(kernels, monkeypatch, kind):
    sizes = ["model.d_model=128", "model.n_heads=4", "model.n_kv_heads=2", "model.n_layers=2", "model.d_ff=64"]
    step = composed_step(*sizes, "train.seq_len=16", kind, vocab_size=101, compile=False)
    ids = np.random.default_rng(1).integers(0, 101, (2, 17)).astype(np.int32)
    batch = to_arrays(Batch(ids[:, :-1], ids[:, 1:]))

    def loss_and_gradients():
        _, gradient, loss, _ = step._gradient(batch)
        return {"loss": loss, **by_path(gradient)}

    ours = loss_and_gradients()
    mx.eval(ours)
    assert kernels is None or kernels
    monkeypatch.setenv("LMXEXP_CUDA_KERNELS", "0")
    for name, want in loss_and_gradients().items():
        # Of a key's bias it is nothing but rounding: the scores of a query all change alike.
        assert mx.abs(ours[name] - want).max() < 5e-5 * max(mx.abs(want).max().item(), 1e-3), name
