"""What is said of the device and its memory, on this machine and, by MLX's documented keys, on others."""

import json
import os
import subprocess
import sys

import mlx.core as mx
import pytest

from lmxexp import device
from tests.pythonpath import PYTHONPATH

METAL = {
    "device_name": "Apple M3",
    "architecture": "applegpu_g15g",
    "memory_size": 16 * 2**30,
    "max_recommended_working_set_size": 12_000_000_000,
    "max_buffer_length": 9_000_000_000,
    "resource_limit": 499_000,
}
CUDA = {"device_name": "H200", "architecture": "sm_90", "total_memory": 150_000_000_000, "free_memory": 1}


def pretend(monkeypatch, info, *, metal, cuda):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    monkeypatch.setattr(mx, "device_info", lambda d=None: {"device_name": "a CPU"} if d == mx.cpu else info)
    monkeypatch.setattr(mx.metal, "is_available", lambda: metal)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: cuda)


@pytest.mark.parametrize(
    ("info", "backend", "memory", "recommended"), [(METAL, "metal", 17.179869184, 12.0), (CUDA, "cuda", 150.0, 150.0)]
)
def test_gpus(monkeypatch, info, backend, memory, recommended):
    pretend(monkeypatch, info, metal=backend == "metal", cuda=backend == "cuda")
    assert device.is_gpu()
    assert device.recommended_memory_gb() == pytest.approx(recommended)
    record = device.device_info()
    assert record["backend"] == backend
    assert record["name"] == info["device_name"]
    assert record["architecture"] == info["architecture"]
    assert record["memory_gb"] == pytest.approx(memory)
    assert record["recommended_memory_gb"] == pytest.approx(recommended)
    assert record["cpu"] == "a CPU"
    json.dumps(record)


@pytest.mark.parametrize("gpu", [True, False])
def test_processes_of_a_sweep_have_to_fit_beside_each_other(monkeypatch, gpu):
    if gpu:
        pretend(monkeypatch, METAL, metal=True, cuda=False)
    monkeypatch.setattr(device, "_address_space_gb", lambda: None)
    whole = device.memory_to_fit_gb()
    monkeypatch.setenv("LMXEXP_SHARING", "3")
    assert device.memory_to_fit_gb() == pytest.approx(whole / 3)
    monkeypatch.setattr(device, "_address_space_gb", lambda: 0.001)  # which is a process's own
    assert device.memory_to_fit_gb() == (pytest.approx(whole / 3) if gpu else 0.001)


def test_a_gpu_that_says_nothing(monkeypatch):
    pretend(monkeypatch, {}, metal=False, cuda=False)
    assert device.recommended_memory_gb() is None
    assert device.device_info()["name"] is None


def test_this_machine():
    record = json.loads(json.dumps(device.device_info()))
    assert record["cpu_cores"] >= 1
    assert record["memory_gb"] > 0.1
    assert record["backend"] in ("cpu", "metal", "cuda")
    assert device.is_gpu() == (record["backend"] != "cpu")


def test_the_cpu_has_no_recommended_memory():
    default = mx.default_device()
    try:
        mx.set_default_device(mx.cpu)
        assert not device.is_gpu()
        assert device.recommended_memory_gb() is None
    finally:
        mx.set_default_device(default)


def test_peak_memory_starts_anew():
    megabytes_100 = mx.zeros((25_000_000,), dtype=mx.float32)
    mx.eval(megabytes_100)
    assert device.peak_memory_gb() >= 0.1
    del megabytes_100
    device.clear_cache()
    assert mx.get_cache_memory() == 0
    device.reset_peak_memory()
    mx.eval(mx.zeros((1000,)))
    assert device.peak_memory_gb() < 0.1


@pytest.mark.parametrize(
    ("gb", "said"),
    [(1e-6, "1e-06 GB"), (0.0123456, "0.0123 GB"), (80, "80 GB"), (999.6, "1,000 GB"), (1512.3, "1,512 GB")],
)
def test_gigabytes_in_words(gb, said):
    assert device.in_gb(gb) == said


GRAPHS = """
import os
import lmxexp
import mlx.core as mx

for n in range(1, 9):  # more kinds of graphs than twice what is kept
    y = x = mx.ones((4, 4))
    for _ in range(n):
        y = y + x
    mx.eval(y)
assert y[0, 0].item() == 9.0
print(*(os.environ.get(name) for name in ("MLX_MAX_MB_PER_BUFFER", "MLX_ENABLE_CACHE_THRASHING_CHECK")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="MLX has a CUDA backend there alone")
@pytest.mark.parametrize(("given", "said"), [({}, "200 0"), ({"MLX_MAX_MB_PER_BUFFER": "90"}, "90 0")])
def test_a_process_may_make_any_number_of_graphs(given, said):
    env = {**os.environ, "PYTHONPATH": PYTHONPATH, "MLX_CUDA_GRAPH_CACHE_SIZE": "1"}
    env = {k: v for k, v in env.items() if k not in ("MLX_MAX_MB_PER_BUFFER", "MLX_ENABLE_CACHE_THRASHING_CHECK")}
    done = subprocess.run(
        [sys.executable, "-c", GRAPHS], env=env | given, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == said.split()


@pytest.mark.parametrize("metal", [True, False])
def test_metal_alone_is_waited_for(monkeypatch, metal):
    waits = []
    pretend(monkeypatch, METAL if metal else CUDA, metal=metal, cuda=not metal)
    monkeypatch.setattr(mx, "synchronize", lambda: waits.append(True))
    device.wait()
    assert bool(waits) == metal


def test_a_limit_that_mlx_waits_at_is_taken_back_and_never_above_its_own():
    own = mx.set_memory_limit(0)
    mx.set_memory_limit(own)

    def limit():
        now = mx.set_memory_limit(0)
        mx.set_memory_limit(now)
        return now

    device.limit_memory(0.25)
    assert limit() == 250_000_000
    device.limit_memory(0.5)
    assert limit() == 500_000_000
    device.limit_memory(1e9)
    assert limit() == own
    device.limit_memory(None)
    assert limit() == own
