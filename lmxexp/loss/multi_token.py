"""Multi-token prediction."""

import mlx.core as mx

from lmxexp.interfaces import Aux, Batch, ConfigError
from lmxexp.model.language_model import LanguageModel
from lmxexp.ops.documents import documents


class MultiToken:
    """Next-token cross-entropy in nats, and in training a share of that of the tokens beyond the next.

    Choosing this loss gives the model the modules that predict them (`lmxexp.model.ahead`): DeepSeek-V3's, in a row.
    The k-th sees, at position i, the tokens up to i + k and predicts the one after. Evaluation is that of the plain
    loss: the modules are no part of the model that is sampled.

    ``aux["nll_ahead_k"]`` is the k-th module's own mean, in nats a target.

    Args:
        n_ahead: tokens predicted beyond the next.
        weight: of the mean of the modules' losses beside the plain one.

    Cost:
        A module is a layer and the head once more: see `Ahead`.

    Raises:
        ConfigError: no module, a sequence no longer than their number.

    Source: DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", section 2.2, eqs. 24-25; weight 0.3 for most of the
        training there, 0.1 at the end. A module's targets of another document than its position's do not count. As each
        module's mean is over its own targets, parts of a batch (``train.n_micro``, devices) with unequal shares of them
        come to slightly another step than the whole batch.
    """

    def __init__(self, n_ahead: int = 1, weight: float = 0.3):
        if n_ahead < 1:
            raise ConfigError(
                f"loss.n_ahead={n_ahead} must be at least 1; loss=cross_entropy predicts the next token alone"
            )
        if weight <= 0:
            raise ConfigError(f"loss.weight={weight} must be positive")
        self.n_ahead, self.weight = n_ahead, weight

    def __call__(self, model: LanguageModel, batch: Batch) -> tuple[mx.array, Aux]:
        if len(model.ahead) != self.n_ahead:
            raise ConfigError(f"loss.n_ahead={self.n_ahead}, but the model was made with {len(model.ahead)} modules")
        h, aux = model.hidden(batch.inputs, segment_ids=batch.segment_ids)
        nll, _, logits = model.score(h, batch.targets)
        weights = mx.ones_like(nll) if batch.weights is None else batch.weights
        total, n_targets = (nll * weights).sum(), weights.sum()
        loss = _mean(nll, weights)
        if model.training:
            further, more = self._further(model, h, batch, weights)
            loss = loss + self.weight / self.n_ahead * sum(further.values())
            aux = {**aux, **further, **{k: v + aux[k] if k in aux else v for k, v in more.items()}}
        for name, value in aux.items():
            if name.endswith("_loss"):
                loss = loss + value
        aux = {**aux, "nll": total, "n_targets": n_targets}
        if not model.training:
            aux["n_correct"] = ((logits.argmax(-1) == batch.targets) * weights).sum()
        return loss, aux

    def _further(self, model: LanguageModel, h: mx.array, batch: Batch, weights: mx.array) -> tuple[Aux, Aux]:
        """The modules' losses by name, and what their layers return beside."""
        length = batch.inputs.shape[1]
        if length <= self.n_ahead:
            raise ConfigError(
                f"loss.n_ahead={self.n_ahead} must be less than the {length} tokens of a sequence (train.seq_len, or "
                "ramp.start with ramp=seq_len)"
            )
        outputs, more = model.look_ahead(h, batch.inputs, segment_ids=batch.segment_ids)
        losses: Aux = {}
        for k, further in enumerate(outputs, start=1):
            nll = model.score(further, batch.targets[:, k:]).nll
            counted = weights[:, k:]
            if batch.segment_ids is not None:
                document = documents(batch.segment_ids)
                counted = counted * (document[:, k:] == document[:, :-k])
            losses[f"nll_ahead_{k}"] = _mean(nll, counted)
        return losses, more


def _mean(nll: mx.array, weights: mx.array) -> mx.array:
    return (nll * weights).sum() / mx.maximum(weights.sum(), 1e-9)
