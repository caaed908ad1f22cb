"""The width of a head, where it is not given."""

from lmxexp.interfaces import ConfigError


def head_width(d_model: int, n_heads: int, head_dim: int | None, expand: float = 1.0, key: str = "expand") -> int:
    """``head_dim``, or ``d_model / n_heads`` where it is None, times ``expand``.

    Args:
        key: what the setting of ``expand`` is called.

    Raises:
        ConfigError: it is no whole number.
    """
    if head_dim is None:
        if n_heads < 1 or d_model % n_heads:
            raise ConfigError(
                f"model.d_model={d_model} must be a multiple of model.n_heads={n_heads}, or set model.head_dim"
            )
        head_dim = d_model // n_heads
    width = head_dim * expand
    if width < 1 or width != int(width):
        raise ConfigError(f"model.attention.{key}={expand} times a head_dim of {head_dim} is no whole number")
    return int(width)
