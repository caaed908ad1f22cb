"""What layers with a recurrence keep between calls in decoding."""

import mlx.core as mx


class RecurrentCache:
    """Arrays of a size that does not grow with the sequence: states of recurrences, last inputs of convolutions.

    A mixer reads them by name with `get`, and once a call puts the new ones in their place with `update`.
    A convolution's last inputs are W - 1 positions from the first call on, zeros where there were none.
    """

    def __init__(self) -> None:
        self.offset = 0
        self._arrays: dict[str, mx.array] = {}

    @property
    def state(self) -> list[mx.array]:
        return list(self._arrays.values())

    def get(self, name: str) -> mx.array | None:
        """The array as the last call left it; None before the first."""
        return self._arrays.get(name)

    def update(self, n_new: int, **arrays: mx.array) -> None:
        """Count ``n_new`` positions more and replace the arrays of these names."""
        self.offset += n_new
        self._arrays.update(arrays)
