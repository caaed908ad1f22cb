"""What families with state spaces share."""

from collections.abc import Callable, Sequence
from typing import Any

from lmxexp.export.family import Tie, all_equal, is_exactly, require, same
from lmxexp.export.parts import has_bias
from lmxexp.model.attention.conv1d import DepthwiseConv1d
from lmxexp.model.attention.gated_norm import GatedRMSNorm
from lmxexp.model.attention.mamba1 import Mamba1
from lmxexp.model.attention.mamba2 import Mamba2
from lmxexp.model.language_model import LanguageModel
from lmxexp.ops.trees import by_path


def renamed_with_convolutions(model: LanguageModel, rename: Callable[[str], str | None]) -> list[Tie]:
    """As `lmxexp.export.family.renamed`; the weight of a depthwise convolution has an axis more there, for the channels
    that an output sees, which is one."""
    convolutions = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, DepthwiseConv1d)}
    pairs = [(ours, rename(ours)) for ours in by_path(model.parameters())]
    return [
        _with_an_axis(ours, theirs) if ours in convolutions else same(ours, theirs)
        for ours, theirs in pairs
        if theirs is not None
    ]


def _with_an_axis(ours: str, theirs: str) -> Tie:
    return Tie((ours,), (theirs,), lambda a: (a[:, None],), lambda a: (a[:, 0],))


def backbone_name(ours: str) -> str:
    """The name in checkpoints of the authors' kind, whose layers have a norm and a ``mixer``, be it a feed-forward."""
    if ours == "embedding.lm_head.weight":
        return "lm_head.weight"
    if ours == "norm.weight":
        return "backbone.norm_f.weight"
    name = ours.replace("embedding.embed_tokens.", "embeddings.")
    for mine in (".self_attn.", ".mlp."):
        name = name.replace(mine, ".mixer.")
    for mine in (".input_layernorm.", ".post_attention_layernorm."):
        name = name.replace(mine, ".norm.")
    return f"backbone.{name}"


def mamba1_name(name: str) -> str:
    """The bias of the projection to step sizes lies beside it here, and in it there."""
    return f"{name.removesuffix('dt_bias')}dt_proj.bias" if name.endswith(".dt_bias") else name


def mamba1_sizes(mixers: Sequence[Mamba1]) -> dict[str, Any]:
    """The settings of Mamba layers that have the same, by our names."""
    return {
        key: all_equal((getattr(m, key) for m in mixers), key) for key in ("expand", "d_state", "dt_rank", "chunk")
    } | _of_convolutions(mixers)


def mamba2_sizes(mixers: Sequence[Mamba2]) -> dict[str, Any]:
    """The settings of Mamba-2 layers that have the same, by our names."""
    keys = ("n_heads", "head_dim", "d_inner", "expand", "d_state", "n_groups", "chunk", "dt_limit")
    return {key: all_equal((getattr(m, key) for m in mixers), key) for key in keys} | _of_convolutions(mixers)


def _of_convolutions(mixers: Sequence[Any]) -> dict[str, Any]:
    return {
        "conv_width": all_equal((m.conv1d.width for m in mixers), "conv_width"),
        "bias": has_bias(*(p for m in mixers for p in (m.in_proj, m.out_proj))),
        "conv_bias": has_bias(*(m.conv1d for m in mixers)),
    }


def gated_norm_eps(mixers: Sequence[Mamba2]) -> float:
    """Of the norms behind the gates, which all layers have to have."""
    norms = [is_exactly(m.norm, GatedRMSNorm, "the norm of a state space") for m in mixers]
    return all_equal((n.eps for n in norms), "eps of the norms of state spaces")


def mixer_alone(layer: Any, kind: type) -> Any:
    """The mixer of a layer without a feed-forward, if it is of that class."""
    require(layer.mlp is None, "a layer has a feed-forward")
    return is_exactly(layer.self_attn, kind, "a mixer")


def read_limit(value: Any) -> tuple[float, float]:
    """``time_step_limit`` of a ``config.json``; transformers writes infinity as a mapping."""
    low, high = (v["__float__"] if isinstance(v, dict) else v for v in value)
    return float(low), float(high)


def knobs(entry: str, **values: Any) -> list[str]:
    """Overrides of a palette entry's knobs."""
    return [f"model.{entry}.{key}={_written(value)}" for key, value in values.items()]


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{','.join(map(_written, value))}]"
    return str(value)
