"""Cross-entropy from logits, as a pure function."""

import mlx.core as mx

from lmxexp.ops.exp import logsumexp


def cross_entropy(logits: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """Negative log-likelihood of each target, in nats.

    In fp32 whatever the logits are: a sum over a large vocabulary in bf16 decides nothing.

    Shapes:
        logits ``(..., V)``, targets ``(...)`` int; returns the nll and the log of the softmax's denominator,
        both ``(...)`` fp32.
    """
    logits = logits.astype(mx.float32)
    log_z = logsumexp(logits)
    target_logits = mx.take_along_axis(logits, targets[..., None], axis=-1).squeeze(-1)
    return log_z - target_logits, log_z
