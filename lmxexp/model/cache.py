"""What layers keep between calls in decoding."""

import mlx.core as mx


class NoState:
    """Of a layer without a mixer: counts positions and holds nothing. The model counts on its behalf."""

    def __init__(self) -> None:
        self.offset = 0
        self.state: list[mx.array] = []


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


class ChunkCache:
    """Keys and values of the chunk that is not full yet."""

    def __init__(self, chunk: int) -> None:
        self.offset = 0
        self.chunk = chunk
        self._kept: tuple[mx.array, mx.array] | None = None

    @property
    def state(self) -> list[mx.array]:
        return [] if self._kept is None else list(self._kept)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append ``(B, K, L, C)`` keys and values; return them behind the rest of the chunk that they go on with."""
        self.offset += keys.shape[2]
        if self._kept is not None:
            keys = mx.concatenate([self._kept[0], keys], axis=2)
            values = mx.concatenate([self._kept[1], values], axis=2)
        first = keys.shape[2] - self.offset % self.chunk
        self._kept = (keys[:, :, first:], values[:, :, first:])
        return keys, values
