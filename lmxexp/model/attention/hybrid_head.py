"""Two mixers side by side in one layer."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import Cache, ConfigError, Factory, Shared


class HybridHead(nn.Module):
    """The sum of two mixers of the same input, such as attention, which looks things up, and a state space, which
    sums things up.

    Args:
        d_model: width of the input and output.
        first, second: factories of a `Mixer`.
        layer_idx: place in the stack, counted from 0.
        first_scale, second_scale: what the two outputs are multiplied by; not learned.

    Shapes:
        ``(B, L, D) -> (B, L, D)``.

    Cost:
        Cache and FLOPs of the two together.

    Raises:
        ConfigError: one of the two is empty.

    Source: Zuo et al. 2025, "Falcon-H1", section 2; Dong et al. 2024, "Hymba", section 2.1, which normalises the two
        and takes their mean.
    """

    def __init__(
        self,
        d_model: int,
        first: Factory,
        second: Factory,
        layer_idx: int = 0,
        first_scale: float = 1.0,
        second_scale: float = 1.0,
    ):
        super().__init__()
        self.first = first(d_model=d_model, layer_idx=layer_idx)
        self.second = second(d_model=d_model, layer_idx=layer_idx)
        for name in ("first", "second"):
            if getattr(self, name) is None:
                raise ConfigError(f"attention.{name} is none: a hybrid head has two mixers; choose the other alone")
        self.first_scale, self.second_scale = first_scale, second_scale
        self.takes_shared = True

    def __call__(
        self,
        x: mx.array,
        *,
        cache: Any = None,
        segment_ids: mx.array | None = None,
        shared: Shared | None = None,
    ) -> mx.array:
        caches = (None, None) if cache is None else (cache.first, cache.second)
        outputs = []
        for mixer, own in zip((self.first, self.second), caches, strict=True):
            more = {"shared": shared} if getattr(mixer, "takes_shared", False) else {}
            outputs.append(mixer(x, cache=own, segment_ids=segment_ids, **more))
        return self.first_scale * outputs[0] + self.second_scale * outputs[1]

    def make_cache(self) -> "PairCache":
        return PairCache(self.first.make_cache(), self.second.make_cache())

    def state_size(self, seq_len: int) -> int:
        return self.first.state_size(seq_len) + self.second.state_size(seq_len)

    def mixing_flops(self, seq_len: int) -> int:
        return self.first.mixing_flops(seq_len) + self.second.mixing_flops(seq_len)


class PairCache:
    """The caches of two mixers of one layer."""

    def __init__(self, first: Cache, second: Cache) -> None:
        self.first, self.second = first, second

    @property
    def offset(self) -> int:
        return self.first.offset

    @property
    def state(self) -> list[mx.array]:
        return [*self.first.state, *self.second.state]
