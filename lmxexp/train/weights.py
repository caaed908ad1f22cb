"""A model with other weights for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lmxexp.model.language_model import LanguageModel


@contextmanager
def weights(model: LanguageModel, parameters: Any) -> Iterator[None]:
    """Within, the model has these; afterwards its own again.

    Args:
        parameters: a tree of all that are trained.
    """
    own = model.trainable_parameters()
    model.update(parameters)
    try:
        yield
    finally:
        model.update(own)
