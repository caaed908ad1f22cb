"""From a node of the configuration to the object that it describes."""

import re
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from lmxexp.interfaces import ConfigError


def build(node: Any) -> Any:
    """What a node of the configuration describes, with plain containers; a constructor's `ConfigError` as it is.

    Raises:
        ConfigError: a constructor's, or a class that cannot be imported: a user's own, from another directory.
    """
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        if missing := re.search(r"Error locating target '([^']+)'", str(error)):
            raise ConfigError(
                f"_target_={missing[1]} cannot be imported: give the command in the directory of the file "
                f"{missing[1].split('.')[0]}.py, or put that directory into PYTHONPATH"
            ) from error
        raise
