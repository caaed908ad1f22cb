"""Which process has which GPU."""

import threading

import mlx.core as mx
import pytest

from lmxexp.sweep.gpus import Slots, cuda_gpus


@pytest.fixture
def machine(monkeypatch):
    """One with four of NVIDIA's."""
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_count", lambda kind: 4)


@pytest.mark.parametrize(
    ("env", "gpus"),
    [
        ({}, ["0", "1", "2", "3"]),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, ["2", "3"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1f, GPU-2e"}, ["GPU-1f", "GPU-2e"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
    ],
)
@pytest.mark.usefixtures("machine")
def test_those_that_the_sweep_may_use(env, gpus):
    assert cuda_gpus(env) == gpus


@pytest.mark.skipif(mx.cuda.is_available(), reason="there are some")
def test_none_where_there_are_none():
    assert cuda_gpus({"CUDA_VISIBLE_DEVICES": "0,1"}) == []


def taken(n, gpus):
    slots, found = Slots(n, gpus), []
    opened = [slots.one() for _ in range(n)]
    for one in opened:
        found.append(one.__enter__().get("CUDA_VISIBLE_DEVICES"))
    for one in opened:
        one.__exit__(None, None, None)
    return found


def test_processes_take_turns_on_gpus():
    assert taken(2, ["4", "5", "6"]) == ["4", "5"]
    assert taken(5, ["4", "5"]) == ["4", "5", "4", "5", "4"]


@pytest.mark.parametrize("gpus", [[], ["0"]])
def test_with_one_there_is_no_choice(gpus):
    assert taken(3, gpus) == [None] * 3


@pytest.mark.parametrize(
    ("n", "gpus", "sharing"), [(1, [], 1), (3, [], 3), (2, ["0"], 2), (4, list("0123"), 1), (5, list("0123"), 2)]
)
def test_how_many_share_one(n, gpus, sharing):
    assert Slots(n, gpus).sharing == sharing


def test_a_free_one_is_taken_again():
    slots = Slots(2, ["0", "1"])
    with slots.one() as first:
        for _ in range(3):
            with slots.one() as other:
                assert {first["CUDA_VISIBLE_DEVICES"], other["CUDA_VISIBLE_DEVICES"]} == {"0", "1"}


def test_never_two_at_once_on_one_where_there_is_one_for_each():
    slots, busy, lock = Slots(3, ["0", "1", "2"]), set(), threading.Lock()

    def work():
        for _ in range(200):
            with slots.one() as env:
                with lock:
                    assert env["CUDA_VISIBLE_DEVICES"] not in busy
                    busy.add(env["CUDA_VISIBLE_DEVICES"])
                with lock:
                    busy.remove(env["CUDA_VISIBLE_DEVICES"])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not busy
