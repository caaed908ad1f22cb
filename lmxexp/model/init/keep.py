"""No initialisation."""

import mlx.core as mx

from lmxexp.model.language_model import LanguageModel


class KeepInit:
    """Leaves every weight as it is: for models that come with weights."""

    def __call__(self, model: LanguageModel, key: mx.array) -> None:
        pass
