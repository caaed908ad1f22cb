"""From the configuration to the initialised model."""

import copy

import mlx.core as mx
from omegaconf import DictConfig

from lmxexp.build import build
from lmxexp.interfaces import ConfigError
from lmxexp.model.language_model import LanguageModel


def check_documents(model: LanguageModel, *, compute: bool) -> None:
    """Refuse a model that cannot keep documents apart.

    Args:
        compute: whether to see if it does, on two documents of four tokens, and not only whether it says it cannot. A
            mixer whose output matrix is zero still hides what it sees.

    Raises:
        ConfigError: a part of it cannot.
    """
    first, other = mx.array([[0, 1, 0, 1, 0, 1, 0, 1], [1, 0, 1, 1, 0, 1, 0, 1]]) % model.vocab_size
    ids = mx.array([[0] * 4 + [1] * 4])
    training = model.training
    model.eval()
    try:
        a, b = (model.hidden(tokens[None], segment_ids=ids)[0][:, 4:].astype(mx.float32) for tokens in (first, other))
        seen = compute and (mx.abs(a - b).max() > 1e-3 * mx.abs(a).max()).item()
        why = "it takes segment_ids, and does not heed them" if seen else None
    except NotImplementedError as error:
        why = str(error) or "segment_ids are not implemented"
    finally:
        model.train(training)
    if why is not None:
        raise ConfigError(
            f"data.document_mask=true: the model cannot keep the documents of a row apart ({why}): "
            "take another attention, or data.document_mask=false"
        )


def check_positions(model: LanguageModel, seq_len: int) -> None:
    """
    Raises:
        ConfigError: the model has fewer positions than a sequence has tokens.
    """
    if model.max_len is not None and model.max_len < seq_len:
        raise ConfigError(
            f"train.seq_len={seq_len}: the model has positions for {model.max_len} tokens alone: raise "
            "model.position.embedding.max_len, or take shorter sequences"
        )


def build_model(cfg: DictConfig, *, vocab_size: int) -> LanguageModel:
    """The model that ``cfg`` describes, initialised from ``cfg.seed``.

    Raises:
        ConfigError: sizes or kinds that do not fit together.
    """
    cfg = copy.deepcopy(cfg)  # instantiate resolves interpolations in place
    factory = build(cfg.model.net)
    mx.random.seed(cfg.seed)
    model = factory(vocab_size=vocab_size)
    shared = {id(m): name for name, m in model.named_modules()}
    if len(shared) != len(list(model.modules())):
        raise ConfigError("model: one module instance stands in two places and would be tied: give it _partial_: true")
    build(cfg.model.init)(model, mx.random.key(cfg.seed))
    mx.eval(model.parameters())
    return model
