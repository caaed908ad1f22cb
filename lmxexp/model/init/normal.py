"""One standard deviation for all."""

from lmxexp.model.init.law import Matrix, NormalLaw, positive


class NormalInit(NormalLaw):
    """Every matrix normal with the same standard deviation.

    Args:
        std: the standard deviation.
    """

    def __init__(self, std: float = 0.02):
        self.std = positive("std", std)

    def std_of(self, path: str, module: Matrix, n_layers: int) -> float:
        return self.std
