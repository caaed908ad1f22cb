"""How far a state space steps at the start of training."""

import mlx.core as mx


def log_spaced_steps(n: int, smallest: float = 1e-3, largest: float = 0.1) -> mx.array:
    """``(n,)`` biases under a softplus that make step sizes evenly spaced in their logarithm, both ends included.

    Source: Gu & Dao 2023, "Mamba", section 3.6, draws them from that range.
    """
    dt = mx.exp(mx.linspace(mx.log(mx.array(smallest)).item(), mx.log(mx.array(largest)).item(), n))
    return dt + mx.log(-mx.expm1(-dt))  # the inverse of softplus, in a form that keeps small numbers' digits
