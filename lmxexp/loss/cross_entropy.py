"""Next-token cross-entropy."""

import mlx.core as mx

from lmxexp.interfaces import Aux, Batch, ConfigError
from lmxexp.model.language_model import LanguageModel


class CrossEntropy:
    """Mean negative log-likelihood of the targets, in nats, with an optional z-loss.

    Args:
        z_loss: weight of the mean of ``log(Z)^2``, which keeps the logits from drifting; 0: none.

    Source: z-loss: Chowdhery et al. 2022, "PaLM", section 5.
    """

    def __init__(self, z_loss: float = 0.0):
        if z_loss < 0:
            raise ConfigError(f"loss.z_loss={z_loss} must not be negative: 0 turns it off")
        self.z_loss = z_loss

    def __call__(self, model: LanguageModel, batch: Batch) -> tuple[mx.array, Aux]:
        h, aux = model.hidden(batch.inputs, segment_ids=batch.segment_ids)
        nll, log_z, logits = model.score(h, batch.targets)
        if batch.weights is None:
            weigh, n_targets, mean = lambda a: a, mx.ones_like(nll).sum(), 1.0 / nll.size
        else:
            weigh, n_targets = lambda a: a * batch.weights, batch.weights.sum()
            mean = 1.0 / mx.maximum(n_targets, 1e-9)
        total = weigh(nll).sum()
        loss = total * mean
        if self.z_loss:
            loss = loss + self.z_loss * weigh(log_z.square()).sum() * mean
        for name, value in aux.items():
            if name.endswith("_loss"):
                loss = loss + value
        aux = {**aux, "nll": total, "n_targets": n_targets}
        if not model.training:
            aux["n_correct"] = weigh((logits.argmax(-1) == batch.targets).astype(mx.float32)).sum()
        return loss, aux
