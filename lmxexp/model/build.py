"""From the configuration to the initialised model."""

import copy

import mlx.core as mx
from omegaconf import DictConfig

from lmxexp.build import build
from lmxexp.interfaces import ConfigError
from lmxexp.model.language_model import LanguageModel


def check_documents(model: LanguageModel) -> None:
    """Refuse a model that cannot keep documents apart; nothing is computed.

    Raises:
        ConfigError: a part of it cannot.
    """
    tokens = mx.zeros((1, 8), mx.int32)
    training = model.training
    model.eval()
    try:
        model.hidden(tokens, segment_ids=tokens)
    except NotImplementedError as error:
        raise ConfigError(
            "data.document_mask=true: the model cannot keep the documents of a row apart "
            f"({error or 'segment_ids are not implemented'}): take another attention, or data.document_mask=false"
        ) from error
    finally:
        model.train(training)


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
