"""The order of a shuffle, computed where it is asked for and stored nowhere."""

import numpy as np

_ROUNDS = 8
_LEAST = 4  # values of a half: between two the cipher would know too few permutations of a handful of things
_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # odd: what differs in the counter differs in its multiple


def shuffled(place: np.ndarray, n: int, seed: int, epoch: np.ndarray) -> np.ndarray:
    """Where a place of an epoch's order lies among ``n`` things: for each epoch a permutation of ``[0, n)``.

    A generalised Feistel cipher: a number is split into ``left * b + right``, with ``a`` values left and ``b`` right,
    and ``a b`` hardly more than ``n``; in turn, a keyed hash of one is added to the other, modulo its size. What comes
    out at ``n`` or above is put in again until it does not (cycle walking), on average ``1 + 1 / sqrt(n)`` times. So
    any place costs the same, however large ``n``, and no order is kept.

    Args:
        place: in ``[0, n)``, of any shape.
        n: at least 1.
        seed: at least 0.
        epoch: at least 0, of the shape of ``place``.

    Returns:
        int64, of the shape of ``place``.

    Source: Black and Rogaway, 2002, "Ciphers with Arbitrary Finite Domains", sections 3 (cycle walking) and 5
        (generalised Feistel). There the round functions are ciphers; here they are the mixing function of SplitMix64
        (Steele, Lea, Flood, 2014, "Fast Splittable Pseudorandom Number Generators"): a shuffle has no adversary.
    """
    a = max(int(n**0.5), _LEAST)
    b = max(-(-n // a), _LEAST)
    key = _mix(_mix(np.full(place.size, seed, np.uint64)) + np.asarray(epoch, np.uint64).ravel())
    out = np.asarray(place, np.uint64).ravel().copy()
    todo = np.arange(out.size)
    while todo.size:
        out[todo] = _enciphered(out[todo], a, b, key[todo])
        todo = todo[out[todo] >= n]
    return out.astype(np.int64).reshape(np.shape(place))


def _enciphered(x: np.ndarray, a: int, b: int, key: np.ndarray) -> np.ndarray:
    left, right = x // np.uint64(b), x % np.uint64(b)
    size, other = np.uint64(a), np.uint64(b)
    for _ in range(_ROUNDS):
        key = key + _GAMMA
        left, right, size, other = right, (left + _mix(key + right) % size) % size, other, size
    return left * np.uint64(b) + right  # of an even number of rounds: the sizes are where they were


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
