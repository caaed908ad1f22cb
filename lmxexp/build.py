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
            _refuse_target(missing[1])
        raise


def _refuse_target(name: str) -> None:
    """Say why a ``_target_`` cannot be imported, if it cannot."""
    from lmxexp.cli.signature import locate, reason

    try:
        locate(name)
    except Exception as error:  # whatever the user's module raises
        module = name.split(".")[0]
        where = (
            f"; give the command in the directory of the file {module}.py, or put that directory into PYTHONPATH"
            if str(error) == f"there is no module {module}"
            else ""
        )
        raise ConfigError(f"_target_={name} cannot be imported: {reason(error)}{where}") from error
