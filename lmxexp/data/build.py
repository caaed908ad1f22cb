"""From the configuration to the source of batches."""

from omegaconf import DictConfig

from lmxexp.build import build
from lmxexp.interfaces import Source


def build_source(cfg: DictConfig) -> Source:
    """The data that a configuration describes, in the tokens of its tokenizer."""
    return build(cfg.data)(tokenizer=build(cfg.tokenizer))
