import mlx.core as mx
import pytest

from lmxexp.ops import sort_rows as module
from lmxexp.ops.sort_rows import argsort_rows, sort_rows


@pytest.mark.parametrize("most", [7, 8, 24, 100])
def test_in_pieces_as_in_one(most, monkeypatch):
    monkeypatch.setattr(module, "_MOST_ROWS", most)
    x = mx.random.normal((4, 6, 5))
    assert mx.array_equal(sort_rows(x), mx.sort(x, axis=-1)).item()
    assert mx.array_equal(argsort_rows(x), mx.argsort(x, axis=-1)).item()


def test_more_rows_than_a_grid_has():
    x = mx.random.normal((70_000, 3))
    assert mx.array_equal(sort_rows(x)[-5:], mx.sort(x[-5:], axis=-1)).item()
    assert mx.array_equal(argsort_rows(x)[-5:], mx.argsort(x[-5:], axis=-1)).item()
