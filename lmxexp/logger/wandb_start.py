"""How everything here that talks to W&B begins and ends: which mode, whether there is a login, and never without a
bound. Imports neither wandb nor MLX before they are needed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

Mode = Literal["auto", "online", "offline", "disabled"]

NAME_LENGTH = 128
"""W&B's servers refuse longer names of runs and groups."""

_MODES: dict[str, Literal["online", "offline", "disabled"]] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


def wanted_mode(setting: Mode) -> Mode:
    """What a setting comes to: auto is what the environment variable ``WANDB_MODE`` says, and stays auto without it.

    Raises:
        ConfigError: a WANDB_MODE that does not exist.
    """
    from_environment = os.environ.get("WANDB_MODE")
    if setting != "auto" or not from_environment:
        return setting
    if from_environment not in _MODES:
        from lmxexp.cli.errors import refuse

        refuse(f"WANDB_MODE={from_environment} is none of {', '.join(_MODES)}: change or unset it")
    return _MODES[from_environment]


def set_up() -> None:
    """Silence before anything else, and no error reports of W&B's own unless the user asks for them."""
    # Before the import, which reads it.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    # Silent before login, which would otherwise ask the server who the user is.
    wandb.setup(wandb.Settings(silent=True, mode="online"))


def logged_in() -> bool:
    """Whether there is a key: the same search that ``wandb.init`` makes, without its prompt and without the network."""
    import wandb

    return bool(wandb.login(prompt=False, verify=False))


def tear_down() -> None:
    """Lets W&B's helper process go."""
    import wandb

    # It raises when the helper process is gone, and exits the interpreter when that failed.
    with suppress(Exception, SystemExit):
        wandb.teardown(exit_code=1)


def within(seconds: float, call: Callable[[], object]) -> bool:
    """Calls in a thread and waits for it at most so long. False: it did not end, or timed out itself."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors and not isinstance(errors[0], TimeoutError):
        raise errors[0]
    return not thread.is_alive() and not errors
