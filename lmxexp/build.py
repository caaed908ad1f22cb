"""From a node of the configuration to the object that it describes."""

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from lmxexp.interfaces import ConfigError


def build(node: Any) -> Any:
    """What a node of the configuration describes, with plain containers; a constructor's `ConfigError` as it is."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        raise
