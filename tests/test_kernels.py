"""The precompiled header of MLX's kernels: GCC takes it, and nothing depends on it."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import pytest

from lmxexp import device, kernels

LINUX_CPU = sys.platform == "linux" and not device.is_gpu() and shutil.which("g++") is not None

MLX_S = ("-std=c++17", "-O3", "-fPIC")
"""The flags that MLX compiles its kernels with, of those that GCC compares."""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("LMXEXP_PRECOMPILE", raising=False)
    return kernels.place()


@pytest.mark.skipif(not LINUX_CPU, reason="kernels are compiled otherwise here")
def test_gcc_takes_it_for_a_kernel_and_makes_the_same_of_it(place):
    source = place.parents[3] / "kernel.cpp"
    source.parent.mkdir(parents=True)
    source.write_text(
        f'#include "{kernels.HEADER}"\n'
        'extern "C" void f(float* a, float* b, int n) {\n'
        "  for (int i = 0; i < n; ++i) b[i] = mlx::core::detail::Sigmoid()(a[i]);\n}\n"
    )
    include = Path(mx.__file__).parent / "include"
    command = ["g++", *MLX_S, "-w", "-H", "-I", str(include), str(source), "-S", "-o", "-"]
    without = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not any(line.startswith("!") for line in without.stderr.splitlines())
    kernels.precompile_header().wait(60)
    with_it = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"! {place}" in with_it.stderr.splitlines()[0].replace("! ./", "! ")
    assert with_it.stdout == without.stdout
    assert kernels.precompile_header() is None
    assert [path.name for path in place.parent.iterdir()] == [place.name]


@pytest.mark.skipif(not LINUX_CPU, reason="kernels are compiled otherwise here")
def test_it_is_where_mlx_compiles_its_kernels():
    """MLX does not say where: if it ever is elsewhere, nothing breaks, but nothing is gained."""
    mx.eval(mx.compile(lambda x: x * 2.125 + 1)(mx.ones((3,))))
    assert list(kernels.place().parents[3].glob("*.so"))


@pytest.mark.skipif(not LINUX_CPU, reason="kernels are compiled otherwise here")
def test_not_twice_at_once(place):
    first = kernels.precompile_header()
    while not any(place.parent.glob("*")) and first.poll() is None:
        pass
    assert kernels.precompile_header() is None
    first.wait(60)


def test_not_where_it_is_not_wanted_or_cannot_be(place, monkeypatch):
    monkeypatch.setenv("LMXEXP_PRECOMPILE", "0")
    assert kernels.precompile_header() is None
    monkeypatch.delenv("LMXEXP_PRECOMPILE")
    (place.parents[5]).mkdir(parents=True, exist_ok=True)
    place.parents[4].write_text("a file where a directory should be")
    assert kernels.precompile_header() is None
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert kernels.precompile_header() is None
    assert not place.exists()
