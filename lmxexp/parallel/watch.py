"""A rank that ends before the others ends them too, and says so once.

A collective operation waits for ever for a rank that is no more, in C++, where no exception of Python's gets in. So
each rank has a thread that waits on a TCP connection to rank 0. The system closes the connections of a process that
dies, whatever it died of, and keepalive probes find a machine that is no more.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

_PROBE = {"TCP_KEEPIDLE": 10, "TCP_KEEPALIVE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
"""Seconds, and a count: a machine that answers nothing is given up after 30 s. macOS calls the first by the second."""

_OWN_SECONDS = 3.0
"""For a rank that fails of the same as another to say so itself: of what is wrong for all, rank 0 tells."""

_TOLD_SECONDS = 10.0

_SAY_SECONDS = 2.0

_PARENT_SECONDS = 1.0

_CONNECT_SECONDS = 60.0

_WORD = 16
"""Bytes of the word by which a rank is known to be one of ours."""


class Watch:
    """Watches over the ranks of a run.

    Args:
        rank: of this process.
        size: processes.
        exit: ends the process at once, with a code.
    """

    def __init__(self, rank: int, size: int, *, exit: Callable[[int], Any] = os._exit):
        self.rank, self.size = rank, size
        self.on_death: Callable[[str], None] = lambda message: None
        """Called on rank 0 with what is said, before the process ends."""
        self.mend = ""
        """What to do about it, in the message."""
        self._exit = exit
        self._failing = self._over = False
        self._links: dict[int, socket.socket] = {}
        """By rank: rank 0 has one to each of the others, they have one to rank 0."""
        self._lock = threading.Lock()
        self._err = sys.stderr
        """As it was before other ranks were made quiet."""

    def listen(self, host: str) -> tuple[int, bytes]:
        """On rank 0: the port that the others connect to next, and the word by which they are known."""
        self._server = socket.create_server((host, 0), backlog=self.size)
        return self._server.getsockname()[1], secrets.token_bytes(_WORD)

    def connect(self, host: str, port: int, word: bytes) -> None:
        """All ranks: make the connections, and begin to watch."""
        if self.rank == 0:
            self._server.settimeout(_CONNECT_SECONDS)
            while len(self._links) < self.size - 1:
                link, _ = self._server.accept()
                link.settimeout(_CONNECT_SECONDS)
                said = link.recv(_WORD + 4, socket.MSG_WAITALL)
                if said[:_WORD] == word:
                    self._links[int.from_bytes(said[_WORD:], "big")] = link
            self._server.close()
        else:
            link = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
            link.sendall(word + self.rank.to_bytes(4, "big"))
            self._links[0] = link
        for rank, link in self._links.items():
            link.settimeout(None)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _PROBE.items():
                with suppress(AttributeError, OSError):
                    link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            threading.Thread(target=self._hear, args=(rank, link), daemon=True).start()

    def follow_parent(self, stop: Callable[[], None]) -> None:
        """Call ``stop`` once the launcher is no more."""
        parent = os.getppid()

        def look() -> None:
            while os.getppid() == parent:
                time.sleep(_PARENT_SECONDS)
            stop()

        threading.Thread(target=look, daemon=True).start()

    def have_the_last_word(self) -> None:
        """Let SIGTERM wait for what there is to say: `mlx.launch` sends it to all as soon as one has died."""
        if (
            threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        ):
            return

        def leave(number: int, _frame: Any) -> None:
            time.sleep(_SAY_SECONDS)  # the thread that hears of a death ends the process
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

        signal.signal(signal.SIGTERM, leave)

    def finish(self) -> None:
        """This rank has done all that it was to do."""
        self._over = True
        self._send({"done": True})

    def fail(self, error: BaseException, said: bool) -> None:
        """This rank ends by an error. On rank 0 returns, so that it is told of as any error is; the others wait to be
        ended once rank 0 has told of it: `mlx.launch` ends all ranks as soon as one has ended badly, rank 0 before its
        word is out.

        Args:
            said: whether it is one that every rank comes to by itself, and rank 0 tells of.
        """
        self._failing = True
        if self.rank == 0:
            # What another rank did not survive shows here as an error of the connection: that one is to be told of.
            time.sleep(_OWN_SECONDS / 6)
        self._send({"failed": f"{type(error).__name__}: {' '.join(str(error).split())}", "said": said})
        if self.rank != 0:
            time.sleep(_TOLD_SECONDS)

    def _send(self, message: Mapping[str, Any]) -> None:
        for link in self._links.values():
            with self._lock, suppress(OSError):
                link.sendall(json.dumps(message).encode() + b"\n")

    def _hear(self, rank: int, link: socket.socket) -> None:
        """What the rank at the other end says, until it ends."""
        last: dict[str, Any] = {}
        with suppress(OSError), link.makefile("rb") as lines:
            for line in lines:
                last = json.loads(line)
                if "done" in last:
                    return  # whenever its process ends, it is none of the others' business
                if "end" in last or "failed" in last:
                    break
        if self._over:
            return
        if self.rank == 0:
            self._end(rank, last)
        elif last:
            self._exit(0)  # rank 0 has told of it, and its exit code says so
        else:
            self._lost_main()

    def _end(self, rank: int, last: Mapping[str, Any]) -> None:
        if "failed" in last:
            time.sleep(_OWN_SECONDS if last["said"] else _OWN_SECONDS / 6)
        if self._failing and "failed" in last:
            return
        how = f"failed ({last['failed']})" if "failed" in last else "died"
        message = f"rank {rank} of {self.size} {how}; the others were ended{self.mend}"
        with suppress(Exception):
            self.on_death(message)
        self._say(message)
        self._send({"end": True})
        self._exit(1)

    def _lost_main(self) -> None:
        """Rank 1 says so: of rank 0, which says all else, nothing is left."""
        if self.rank == 1:
            self._say(f"rank 0 of {self.size} died; the others were ended{self.mend}")
        self._exit(1)

    def _say(self, message: str) -> None:
        with suppress(Exception):
            print(f"lmxexp: error: {message}", file=self._err, flush=True)
