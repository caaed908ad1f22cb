"""The sizes that a llama is built from, whoever builds it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """The sizes of a llama, see the legend of `lmxexp.interfaces`."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    seq_len: int
    rope_theta: float = 10000.0
    eps: float = 1e-5
