"""The computed order of a shuffle: a permutation for every length, seed and epoch, and no two alike."""

import math
import time

import numpy as np
import pytest

from lmxexp.data.permutation import shuffled


def order(n, seed=0, epoch=0):
    return shuffled(np.arange(n), n, seed, np.full(n, epoch))


def orders(n, epochs, seed=0):
    """(epochs, n)"""
    place, epoch = np.tile(np.arange(n), epochs), np.repeat(np.arange(epochs), n)
    return shuffled(place, n, seed, epoch).reshape(epochs, n)


def test_is_a_bijection():
    for n in (*range(1, 200), 1000, 1023, 1024, 1025, 65_537):
        assert np.array_equal(np.sort(orders(n, 3, seed=n)), np.tile(np.arange(n), (3, 1))), n


def test_every_seed_and_epoch_has_its_own():
    found = [order(500, seed, epoch) for seed in (0, 1, 2**62) for epoch in (0, 1, 10**9)]
    for a in found:
        for b in found:
            if a is not b:
                assert np.sum(a == b) < 10, "about one in 500 is in place by chance"


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_orders_of_a_few_things_are_equally_likely(n):
    found = {}
    for key in map(tuple, orders(n, 2400, seed=7).tolist()):
        found[key] = found.get(key, 0) + 1
    expected = 2400 / math.factorial(n)
    chi2 = sum((count - expected) ** 2 for count in found.values()) / expected
    chi2 += (math.factorial(n) - len(found)) * expected
    freedom = math.factorial(n) - 1
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5


def test_a_place_goes_anywhere_and_neighbours_part():
    n = 53
    found = orders(n, 4000, seed=1)
    of_place = np.stack([np.bincount(found[:, i], minlength=n) for i in range(n)])
    distance = np.bincount(((found[:, 1:] - found[:, :-1]) % n).ravel(), minlength=n)[1:]
    for counts, freedom in ((of_place, (n - 1) ** 2), (distance, n - 2)):
        expected = counts.mean()
        chi2 = ((counts - expected) ** 2).sum() / expected
        assert abs(chi2 - freedom) < 5 * (2 * freedom) ** 0.5


def test_several_epochs_at_once_and_any_shape():
    place, epoch = np.array([[3, 999], [0, 3]]), np.array([[0, 5], [5, 1]])
    got = shuffled(place, 1000, 4, epoch)
    assert got.tolist() == [
        [order(1000, 4, 0)[3], order(1000, 4, 5)[999]],
        [order(1000, 4, 5)[0], order(1000, 4, 1)[3]],
    ]


def test_the_last_place_costs_what_the_first_does():
    n = 10**15 + 37
    places = np.concatenate([np.arange(16), n - 1 - np.arange(16)])
    start = time.process_time()
    for epoch in range(50):
        got = shuffled(places, n, 0, np.full(32, epoch))
        assert len(set(got.tolist())) == 32
        assert got.min() >= 0
        assert got.max() < n
    assert (time.process_time() - start) / 50 < 5e-3  # 0.1 ms of a processor
