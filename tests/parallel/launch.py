"""Processes of one run, started as a user starts them."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.end_to_end.processes import TIMEOUT
from tests.pythonpath import PYTHONPATH


def command(n: int, *args: str) -> list[str]:
    """``mlx.launch`` of a module, by the ring backend."""
    launcher = Path(sys.executable).parent / "mlx.launch"
    return [str(launcher), "-n", str(n), "--backend", "ring", "-p", str(_free_ports(n)), "--", sys.executable, *args]


@contextmanager
def started(n: int, *args: str, cwd: Path) -> Iterator[subprocess.Popen]:
    """Ended with the block, whatever becomes of it."""
    process = subprocess.Popen(
        command(n, *args),
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        stdin=subprocess.PIPE,  # open: mlx.launch looks at it all the time
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def launch(n: int, *args: str, cwd: Path) -> str:
    """What all of them print."""
    with started(n, *args, cwd=cwd) as process:
        return process.communicate(timeout=TIMEOUT)[0]


def _free_ports(n: int) -> int:
    """The first of ``n`` in a row."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
        try:
            for i in range(n):
                with socket.socket() as other:
                    other.bind(("127.0.0.1", port + i))
        except OSError:
            continue
        return port
