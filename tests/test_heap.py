"""Freed memory is used again, on a Linux with glibc."""

import subprocess
import sys

import pytest

from lmxexp import device, heap

SCRIPT = """
import resource, sys
import lmxexp
import mlx.core as mx
from lmxexp import heap
mx.set_default_device(mx.cpu)
if sys.argv[1] == "kept":
    assert heap.keep_freed_memory()
x = mx.ones((12, 1024, 1024))
mx.eval(x)
for i in range(12):
    if i == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    y = x + i
    mx.eval(y)
    del y
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or device.is_gpu(), reason="MLX's arrays are of other memory there")
def test_pages_are_not_fetched_anew():
    if not heap.keep_freed_memory():
        pytest.skip("no glibc")
    faults = [
        int(subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "given back")
    ]
    assert faults[0] * 10 < faults[1], faults


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert heap.keep_freed_memory() is False
