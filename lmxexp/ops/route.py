"""Which experts a token goes to, and how evenly they are used."""

from collections.abc import Callable

import mlx.core as mx

from lmxexp.ops.sort_rows import argsort_rows


def top_k(scores: mx.array, k: int) -> mx.array:
    """Indices of the ``k`` largest scores, the largest first; of equal scores the one of the lower index.

    No gradient: a choice has none.

    Shapes:
        ``(..., E) -> (..., k)`` unsigned.
    """
    return argsort_rows(mx.stop_gradient(-scores))[..., :k]


def limit_groups(
    scores: mx.array, n_groups: int, topk_groups: int, group_score: Callable[[mx.array], mx.array]
) -> mx.array:
    """Scores of the experts in the ``topk_groups`` best groups, ``-inf`` for all others.

    A group is ``E / n_groups`` neighbours, thought of as the experts of one device: a token travels to few devices.

    Args:
        group_score: how good a group is, from ``(T, n_groups, E / n_groups)`` to ``(T, n_groups)``.

    Shapes:
        ``(T, E) -> (T, E)``.

    Source: DeepSeek-AI 2024, "DeepSeek-V2", section 2.2.2.
    """
    T, E = scores.shape
    grouped = scores.reshape(T, n_groups, E // n_groups)
    best = top_k(group_score(grouped), topk_groups)
    chosen = (best[..., None] == mx.arange(n_groups)).any(axis=1)
    return mx.where(chosen[..., None], grouped, -mx.inf).reshape(T, E)


def expert_load(indices: mx.array, n_experts: int) -> mx.array:
    """How much each expert gets, in units of an even share: 1 where all get the same, 0 where one gets nothing.

    Shapes:
        ``(T, k) -> (E,)`` fp32; the mean is 1.
    """
    counts = (indices.reshape(-1, 1) == mx.arange(n_experts)).sum(axis=0)
    return counts.astype(mx.float32) * (n_experts / indices.size)


def balance_loss(load: mx.array, probs: mx.array) -> mx.array:
    """``sum_i load_i mean_t probs_ti``: 1 where load or probabilities are even, E where both are on one expert.

    Only the probabilities have a gradient: it lowers those of the experts in demand.

    Shapes:
        load ``(E,)``, see `expert_load`; probs ``(T, E)`` with rows that sum to 1; returns a scalar.

    Source: Fedus et al. 2021, "Switch Transformers", eq. 4 to 6, with the share of all ``T k`` copies for f_i.
        Mixtral's code counts by T and so has ``k`` times the value.
    """
    return (mx.stop_gradient(load) * probs.mean(axis=0)).sum()


def router_z_loss(logits: mx.array) -> mx.array:
    """Mean of ``logsumexp(logits)^2``: keeps the router's logits small.

    Shapes:
        ``(T, E)`` to a scalar.

    Source: Zoph et al. 2022, "ST-MoE", eq. 5.
    """
    return mx.logsumexp(logits, axis=-1).square().mean()
