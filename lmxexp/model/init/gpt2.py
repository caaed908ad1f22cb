"""GPT-2's initialisation."""

from lmxexp.model.init.law import Matrix
from lmxexp.model.init.normal import NormalInit


class Gpt2Init(NormalInit):
    """Normal, with the matrices that write to the residual stream smaller by ``sqrt(2 n_layers)``.

    Each of the ``2 n_layers`` sublayers adds to the stream; scaled so, the sum's variance does not grow with depth.

    Args:
        std: of all other matrices.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.
    """

    residual_outputs = ("o_proj.weight", "out_proj.weight", "down_proj.weight")

    def std_of(self, path: str, module: Matrix, n_layers: int) -> float:
        return self.std / (2 * n_layers) ** 0.5 if path.endswith(self.residual_outputs) else self.std
