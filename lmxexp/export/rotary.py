"""Rotary positions in Hugging Face's terms, of any age, and in ours."""

from typing import Any

from lmxexp.export.family import InexpressibleError, is_exactly, require
from lmxexp.model.position.rope import RoPE
from lmxexp.model.position.scaling import Linear, Llama3, Scaling, YaRN


def rope_parameters(position: Any, *, partial: bool = False) -> dict[str, Any]:
    """``rope_parameters`` of a rotary position.

    Args:
        partial: whether the family can turn a share of each head, stated as ``partial_rotary_factor``.
    """
    rope = is_exactly(position, RoPE, "the position")
    require(not rope.interleaved, "rope pairs neighbours")
    require(partial or rope.fraction == 1.0, f"rope has fraction={rope.fraction:g}")
    parameters = {**_scaling(rope.scaling), "rope_theta": rope.theta}
    return {**parameters, "partial_rotary_factor": rope.fraction} if partial else parameters


def _scaling(scaling: Scaling | None) -> dict[str, Any]:
    if scaling is None:
        return {"rope_type": "default"}
    if type(scaling) is Linear:
        return {"rope_type": "linear", "factor": scaling.factor}
    if type(scaling) is Llama3:
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_len,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
        }
    if type(scaling) is YaRN:
        optional = {k: getattr(scaling, k) for k in ("mscale", "mscale_all_dim", "attention_factor")}
        return {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_len,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.truncate,
            **{k: v for k, v in optional.items() if v is not None},
        }
    raise InexpressibleError(f"rope has scaling={type(scaling).__name__}")


def read_rope(config: dict[str, Any], theta: float = 10000.0) -> dict[str, Any]:
    """``rope_parameters`` of a ``config.json`` of any age.

    Older files have ``rope_theta``, ``rope_scaling`` and ``partial_rotary_factor`` at the top, and call the type
    ``type``.

    Args:
        theta: what the family takes where the file does not say.
    """
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope["rope_type"] = rope.get("rope_type", rope.pop("type", "default"))
    rope.setdefault("rope_theta", config.get("rope_theta", theta))
    if config.get("partial_rotary_factor") is not None:
        rope.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    if rope["rope_type"] in ("llama3", "yarn"):
        rope.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
    return rope


# Their names of a scaling's knobs to ours.
_KNOBS = {
    "factor": "factor",
    "original_max_position_embeddings": "original_len",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "attention_factor": "attention_factor",
    "truncate": "truncate",
}
_KINDS = {"default": "rope", "linear": "rope_linear", "llama3": "rope_llama3", "yarn": "rope_yarn"}


def rope_overrides(rope: dict[str, Any], entry: str = "position") -> list[str]:
    """The position kind and its knobs.

    Args:
        rope: from `read_rope`.
        entry: palette entry to fill.
    """
    rope_type = rope["rope_type"]
    require(rope_type in _KINDS, f"rope_type is {rope_type}; there are {', '.join(_KINDS)}")
    group = "position" if entry == "position" else f"position@model.{entry}"
    node = f"model.{entry}.attention"
    knobs = {_KNOBS[k]: v for k, v in rope.items() if k in _KNOBS and v is not None} if rope_type != "default" else {}
    unknown = set(rope) - set(_KNOBS) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    require(not unknown or rope_type == "default", f"rope_parameters have {', '.join(sorted(unknown))}")
    return [
        f"{group}={_KINDS[rope_type]}",
        f"{node}.theta={float(rope['rope_theta'])}",
        *([f"{node}.fraction={rope['partial_rotary_factor']}"] if rope.get("partial_rotary_factor") else []),
        *(f"{node}.scaling.{knob}={_plain(value)}" for knob, value in knobs.items()),
    ]


def _plain(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value
