"""The ordered sum behind the embedding's gradient."""

import mlx.core as mx
import numpy as np
import pytest

from lmxexp.ops import embed as module
from lmxexp.ops.embed import embed, sum_rows
from lmxexp.ops.fused import mapped


@pytest.mark.parametrize("limit", [0, 1 << 26], ids=["by runs", "one-hot"])
@pytest.mark.parametrize(("n_rows", "n_ids"), [(1, 3), (2, 2), (64, 5), (1000, 7), (1000, 5000)])
def test_sums(limit, n_rows, n_ids, monkeypatch):
    """Against float64 NumPy, with long runs, single ids and ids that do not occur."""
    monkeypatch.setattr(module, "ONE_HOT_LIMIT", limit)
    ids = mx.random.randint(0, n_ids, (n_rows,), key=mx.random.key(1))
    rows = mx.random.normal((n_rows, 3), key=mx.random.key(2))
    want = np.zeros((n_ids, 3))
    np.add.at(want, np.array(ids), np.array(rows, dtype=np.float64))
    got = np.array(mx.compile(lambda r, i: sum_rows(r, i, n_ids))(rows[None], ids[None]))[0]
    assert np.abs(got - want).max() < 1e-5 * max(1.0, np.abs(want).max())


@pytest.mark.parametrize("limit", [0, 1 << 26], ids=["by runs", "one-hot"])
def test_gradient(limit, monkeypatch):
    """Of the function that a GPU uses, against MLX's own; and the same bits from every call, on whatever device."""
    monkeypatch.setattr(module, "ONE_HOT_LIMIT", limit)
    table = mx.random.normal((11, 4), key=mx.random.key(3))
    ids = mx.random.randint(0, 11, (3, 50), key=mx.random.key(4))
    loss = lambda look_up: lambda t: (look_up(t, ids) ** 3).sum()
    want = mx.grad(loss(lambda t, i: t[i]))(table)
    ours = lambda t, i: module._embed(t[None], i.reshape(1, -1)).reshape(*i.shape, -1)
    draws = [mx.grad(loss(ours))(table) for _ in range(5)]
    assert mx.abs(draws[0] - want).max().item() < 1e-4
    assert all(mx.array_equal(d, draws[0]).item() for d in draws)
    assert mx.array_equal(embed(table, ids), table[ids]).item()


@pytest.mark.parametrize("limit", [0, 1 << 26], ids=["by runs", "one-hot"])
@pytest.mark.parametrize("shared", ["nothing", "table", "ids"])
def test_mapped_it_keeps_its_gradient(limit, shared, monkeypatch):
    """Each member's is what it would be alone, and comes from the ordered sum. (A GPU's product of several members is
    summed in another order.)"""
    for name in ("ONE_HOT_LIMIT", "_ONE_HOT_LIMIT_BESIDE_A_KERNEL"):
        monkeypatch.setattr(module, name, limit)
    table = mx.random.normal((3, 11, 4), key=mx.random.key(5))
    ids = mx.random.randint(0, 11, (3, 2, 50), key=mx.random.key(6))
    axes = (None if shared == "table" else 0, None if shared == "ids" else 0)
    table, ids = (x[0] if axis is None else x for x, axis in zip((table, ids), axes, strict=True))
    sums = []
    monkeypatch.setattr(module, "sum_rows", lambda *args: sums.append(args) or sum_rows(*args))
    of_one = lambda t, i: (module._embed(t[None], i.reshape(1, -1)) ** 3).sum()

    def total(t):
        with mapped():
            return mx.vmap(of_one, in_axes=axes)(t, ids).sum()

    got = mx.grad(total)(table)
    assert len(sums) == 1
    one = lambda x, i, axis: x if axis is None else x[i]
    each = [mx.grad(of_one)(one(table, i, axes[0]), one(ids, i, axes[1])) for i in range(3)]
    want = sum(each) if axes[0] is None else mx.stack(each)
    rounded = axes[0] is None or (limit > 0 and mx.default_device() == mx.gpu)
    assert mx.abs(got - want).max().item() <= (1e-4 if rounded else 0.0)


@pytest.mark.parametrize("limit", [0, 1 << 26], ids=["by runs", "one-hot"])
def test_one_member_s_nan_stays_its_own(limit, monkeypatch):
    monkeypatch.setattr(module, "ONE_HOT_LIMIT", limit)
    rows = mx.random.normal((3, 20, 4), key=mx.random.key(7))
    ids = mx.random.randint(0, 5, (3, 20), key=mx.random.key(8))
    lost = mx.where(mx.arange(3)[:, None, None] == 1, mx.nan, rows)
    got, want = sum_rows(lost, ids, 5), sum_rows(rows, ids, 5)
    assert mx.isnan(got[1]).any().item()
    assert mx.array_equal(got[::2], want[::2]).item()
