"""Queries, keys and values in one matrix, group by group."""

import mlx.core as mx

from lmxexp.export.family import Tie


def fused_by_group(ours: str, theirs: str, array: str, n_heads: int, n_kv_heads: int) -> Tie:
    """The rows of one matrix: for every key head the queries that share it, the key, the value.

    With one key head these are all queries, the key and the value (Falcon 7B); with a key head for every query head,
    query, key and value of each head (GPT-NeoX); in between, Falcon 40B.

    Args:
        ours: the mixer's path, such as ``layers.0.self_attn``.
        theirs: the fused layer's.
        array: ``weight`` or ``bias``.
    """
    shared = n_heads // n_kv_heads

    def to_theirs(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array]:
        heads = [a.reshape(n_kv_heads, n, -1, *a.shape[1:]) for a, n in ((q, shared), (k, 1), (v, 1))]
        fused = mx.concatenate(heads, axis=1)
        return (fused.reshape(-1, *q.shape[1:]),)

    def to_ours(fused: mx.array) -> tuple[mx.array, ...]:
        heads = fused.reshape(n_kv_heads, shared + 2, -1, *fused.shape[1:])
        return tuple(a.reshape(-1, *fused.shape[1:]) for a in mx.split(heads, [shared, shared + 1], axis=1))

    projections = tuple(f"{ours}.{p}.{array}" for p in ("q_proj", "k_proj", "v_proj"))
    return Tie(projections, (f"{theirs}.{array}",), to_theirs, to_ours)
