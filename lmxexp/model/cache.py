"""What attention keeps between calls in decoding."""

import mlx.core as mx


class KVCache:
    """Keys and values of all positions.

    Room is made in steps, so that decoding a token writes one position instead of copying all of them.
    """

    step = 256

    def __init__(self) -> None:
        self.offset = 0
        self._keys: mx.array | None = None
        self._values: mx.array | None = None

    @property
    def state(self) -> list[mx.array]:
        if self._keys is None or self._values is None:
            return []
        return [self._keys[:, :, : self.offset], self._values[:, :, : self.offset]]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append ``(B, K, L, C)`` keys and values; return all of them, ``(B, K, S, C)``."""
        start, self.offset = self.offset, self.offset + keys.shape[2]
        self._keys = self._write(self._keys, keys, start)
        self._values = self._write(self._values, values, start)
        return self._keys[:, :, : self.offset], self._values[:, :, : self.offset]

    def _write(self, buffer: mx.array | None, new: mx.array, start: int) -> mx.array:
        B, K, L, C = new.shape
        if buffer is None or start + L > buffer.shape[2]:
            room = mx.zeros((B, K, -(-L // self.step) * self.step, C), new.dtype)
            buffer = room if buffer is None else mx.concatenate([buffer[:, :, :start], room], axis=2)
        buffer[:, :, start : start + L] = new
        return buffer


class WindowCache:
    """Keys and values of the last ``window`` positions."""

    def __init__(self, window: int) -> None:
        self.offset = 0
        self.window = window
        self._kept: tuple[mx.array, mx.array] | None = None

    @property
    def state(self) -> list[mx.array]:
        return [] if self._kept is None else list(self._kept)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append ``(B, K, L, C)`` keys and values; return them behind those that the first of them still sees."""
        self.offset += keys.shape[2]
        if self._kept is not None and self.window > 1:
            reach = self.window - 1
            keys = mx.concatenate([self._kept[0][:, :, -reach:], keys], axis=2)
            values = mx.concatenate([self._kept[1][:, :, -reach:], values], axis=2)
        self._kept = (keys[:, :, -self.window :], values[:, :, -self.window :])
        return keys, values
