"""How long a batch of text takes to make, and a million documents to pack.

    python benchmarks/batches.py

100,000 documents of random tokens, of log-normal lengths (median 403 tokens, mean 820), in memory; batches of 32 rows
of 1,024 tokens. Times are medians of 300 batches, in milliseconds.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np

from lmxexp.data.packing import packed
from lmxexp.data.permutation import shuffled
from lmxexp.data.rows import Packed, Rows, Windows
from lmxexp.data.sampling import generator
from lmxexp.data.shares import Shares
from lmxexp.data.tokens import Tokens

ROWS, LENGTH, BATCHES = 32, 1024, 300


def lengths(n: int) -> np.ndarray:
    return np.maximum(1, np.random.default_rng(0).lognormal(6, 1.2, n)).astype(np.int64)


def tokens(sizes: np.ndarray, parts: int) -> Tokens:
    ids = np.random.default_rng(1).integers(0, 50_000, int(sizes.sum()), dtype=np.uint16)
    return Tokens(np.array_split(ids, parts), np.cumsum(sizes) - sizes)


def drawn(rows: Rows, index: int) -> np.ndarray:
    return generator(0, index).integers(0, rows.choices, size=ROWS)


def in_order(rows: Rows, index: int) -> np.ndarray:
    epoch, place = np.divmod(index * ROWS + np.arange(ROWS), rows.per_epoch)
    return rows.nth(shuffled(place, rows.per_epoch, 0, epoch), epoch, 0)


def milliseconds(make: Callable[[int], object]) -> float:
    times = []
    for index in range(BATCHES):
        start = time.perf_counter()
        make(index)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    sizes = lengths(100_000)
    print("| packing | document_mask | order | one file | 8 files |")
    print("|---|---|---|---:|---:|")
    split = [tokens(sizes, parts) for parts in (1, 8)]
    plan = packed(split[0], LENGTH + 1)
    for packing in ("stream", "best_fit"):
        for mask in (False, True):
            made: list[Rows] = [
                Windows(t, LENGTH, mask) if packing == "stream" else Packed(t, plan, mask) for t in split
            ]
            for order, numbers in (("random", drawn), ("shuffle", in_order)):
                each = [milliseconds(lambda i, rows=rows, of=numbers: rows.batch(of(rows, i))) for rows in made]
                print(f"| {packing} | {str(mask).lower()} | {order} | {each[0]:.2f} | {each[1]:.2f} |")
    weights = np.array([[0.5, 0.2, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.2, 0.5]])
    shares = Shares([0, 10_000], weights, linear=True)
    of_five = milliseconds(lambda i: shares.rows(i * ROWS, ROWS))
    print(f"\nWhich of five sources the rows of a batch are of: {of_five:.2f} ms")

    print("\n| a million documents into rows of | s | room that is filled |")
    print("|---|---:|---:|")
    sizes = lengths(1_000_000)
    many = Tokens([np.broadcast_to(np.uint16(0), (int(sizes.sum()),))], np.cumsum(sizes) - sizes)
    for length in (256, 1024, 2048, 8192):
        start = time.perf_counter()
        plan = packed(many, length + 1)
        print(f"| {length} + 1 tokens | {time.perf_counter() - start:.2f} | {100 * plan.efficiency:.3f} % |")


if __name__ == "__main__":
    main()
