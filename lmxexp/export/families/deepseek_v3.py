"""DeepSeek-V3: as V2, with experts chosen by sigmoid scores and a correction that balances them."""

from typing import Any

from lmxexp.export import parts
from lmxexp.export.families.deepseek_v2 import DEFAULTS as DEFAULTS_OF_V2
from lmxexp.export.families.deepseek_v2 import common_config, common_overrides, ties
from lmxexp.export.family import all_equal, require
from lmxexp.model.ffn.router import SigmoidRouter
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "DeepseekV3ForCausalLM"
DEFAULTS = {
    **DEFAULTS_OF_V2,
    "first_k_dense_replace": 3,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "moe_intermediate_size": 2048,
    "num_experts_per_tok": 8,
}
__all__ = ["ARCHITECTURE", "DEFAULTS", "config", "overrides", "ties"]


def config(model: LanguageModel) -> dict[str, Any]:
    routers, found = common_config(model, SigmoidRouter)
    require(all(r.bias_rate is not None for r in routers), "no bias corrects the choice of experts")
    return {
        **found,
        "norm_topk_prob": all_equal((r.norm_topk_prob for r in routers), "norm_topk_prob"),
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "rope_interleave": True,
        "num_nextn_predict_layers": 0,
    }


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config, "topk_method": config.get("topk_method", "noaux_tc")}
    parts.require_values(config, scoring_func="sigmoid", topk_method="noaux_tc", rope_interleave=True)
    return [
        *common_overrides("deepseek_v3", config),
        f"model.ffn.router.norm_topk_prob={config['norm_topk_prob']}",
    ]
