"""Ranks that end, each of which is a thread here and does not know it."""

import socket
import threading
import time

import pytest

from lmxexp.parallel import watch as module
from lmxexp.parallel.watch import Watch


class Said(list):
    """In place of stderr."""

    def write(self, text):
        if text.strip():
            self.append(text.strip())

    def flush(self):
        pass


class Ranks:
    def __init__(self, size):
        self.codes, self.said = [[] for _ in range(size)], [Said() for _ in range(size)]
        self.watches = [Watch(rank, size, exit=self.codes[rank].append) for rank in range(size)]
        for watch, said in zip(self.watches, self.said, strict=True):
            watch._err = said
            watch.mend = "; go on"
        port, word = self.watches[0].listen("127.0.0.1")
        threads = [threading.Thread(target=w.connect, args=("127.0.0.1", port, word)) for w in self.watches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)

    def die(self, rank):
        """As the system does it for a dead process, which hears nothing of it."""
        self.watches[rank]._over = True
        for link in self.watches[rank]._links.values():
            link.shutdown(socket.SHUT_RDWR)
            link.close()

    def ended(self, *ranks):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not all(self.codes[rank] for rank in ranks):
            time.sleep(0.01)
        return [self.codes[rank] for rank in ranks]


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(module, "_OWN_SECONDS", 0.3)
    monkeypatch.setattr(module, "_TOLD_SECONDS", 0.1)


def test_one_that_dies_ends_all_and_rank_0_names_it():
    ranks, heard = Ranks(3), []
    ranks.watches[0].on_death = heard.append
    ranks.die(2)
    assert ranks.ended(0, 1) == [[1], [0]]
    assert heard == ["rank 2 of 3 died; the others were ended; go on"]
    assert ranks.said[:2] == [[f"lmxexp: error: {heard[0]}"], []]


def test_where_rank_0_dies_rank_1_says_so():
    ranks = Ranks(3)
    ranks.die(0)
    assert ranks.ended(1, 2) == [[1], [1]]
    assert ranks.said[1:] == [["lmxexp: error: rank 0 of 3 died; the others were ended; go on"], []]


def test_that_is_said_too_where_it_showed_as_an_error_first():
    ranks = Ranks(2)
    failing = threading.Thread(target=ranks.watches[1].fail, args=(RuntimeError("a connection"), False))
    ranks.watches[0]._over = True
    failing.start()
    ranks.die(0)
    assert ranks.ended(1) == [[1]]
    assert ranks.said[1] == ["lmxexp: error: rank 0 of 2 died; the others were ended; go on"]


def test_one_that_fails_says_of_what_through_rank_0():
    ranks = Ranks(2)
    ranks.watches[1].fail(OSError("no space"), said=False)
    assert ranks.ended(0, 1) == [[1], [0]]
    assert ranks.said == [["lmxexp: error: rank 1 of 2 failed (OSError: no space); the others were ended; go on"], []]


def test_of_what_all_fail_of_rank_0_tells_by_itself():
    ranks = Ranks(2)
    ranks.watches[1].fail(ValueError("a setting"), said=True)
    ranks.watches[0].fail(ValueError("a setting"), said=True)
    assert ranks.ended(1) == [[0]]
    time.sleep(0.5)
    assert (ranks.codes[0], ranks.said) == ([], [[], []]), "the error goes on its way"


def test_one_that_is_done_may_go():
    ranks = Ranks(2)
    for watch in ranks.watches:
        watch.finish()
    ranks.die(1)
    time.sleep(0.2)
    assert (ranks.codes, ranks.said) == ([[], []], [[], []])


def test_a_stranger_is_not_taken_for_a_rank():
    main, other = Watch(0, 2, exit=lambda _: None), Watch(1, 2, exit=lambda _: None)
    port, word = main.listen("127.0.0.1")
    thread = threading.Thread(target=main.connect, args=("127.0.0.1", port, word))
    thread.start()
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(bytes(20))
        other.connect("127.0.0.1", port, word)
        thread.join(10)
    assert list(main._links) == [1]
