"""Every CUDA kernel by NVIDIA's run-time compiler, which needs no GPU."""

import pytest

from lmxexp.ops import (
    cholesky,
    cuda_compiler,
    embed,
    gated,
    head_loss,
    joined,
    rms_norm_kernels,
    rope,
    small_product,
    sum_of_squares,
)

T = "T"
KERNELS = {
    "nll": (head_loss._NLL, [T, "int", "float", "float"]),
    "logit_gradient": (head_loss._GRADIENT, [T, "float", "int", "float", "float", T]),
    "silu_gradient": (gated._SILU_GRADIENT, [T, T, T, T, T]),
    "rows": (embed._ROWS, [T, "int", T]),
    "sum_rows": (embed._SUM_ROWS, [T, "unsigned int", "int", T]),
    "silu_halves": (gated._SILU_HALVES, [T, T]),
    "silu_halves_gradient": (gated._SILU_HALVES_GRADIENT, [T, T, T]),
    "joined": (joined._kernel(3), [T, T, T, T]),
    "joined and cast": (joined._kernel(2), ["float", "float", T]),
    "rope": (rope._TURN, [T, T]),
    "rope_apart": (rope._TURN_APART, [T, T, T, T]),
    "rope_together": (rope._TURN_BACK_TOGETHER, [T, T, T, T]),
    "rms_norm": (rms_norm_kernels._kernel(3, False), [T, T, T, T, "float"]),
    "rms_norm beside": (rms_norm_kernels._kernel(3, True), [T, T, T, T, T, "float"]),
    "rms_norm_of_sum": (rms_norm_kernels._sum_kernel(3), [T, T, T, T, T]),
    "sum_of_blocks": (rms_norm_kernels._SUM_OF_BLOCKS, ["float", T]),
    "sum_of_squares": (sum_of_squares._kernel(9), [T] * 9 + ["int", "float"]),
    "inverse_cholesky": (cholesky._INVERSE_FACTOR, ["float", "float"]),
}
PRODUCTS = {"product_rr": (True, True), "product_rc": (True, False), "product_cc": (False, False)}
KERNELS |= {name: (small_product._kernel(*in_rows), [T, T, T]) for name, in_rows in PRODUCTS.items()}
OF_ONE_TYPE = {"inverse_cholesky": ["float"], **{name: ["__nv_bfloat16"] for name in PRODUCTS}}
FRAMES = {"rope": 32, "rope_apart": 32, "rope_together": 32}
"""Bytes on the stack, which is memory: sine and cosine of large angles have them. Of the others, arrays would be there
whose places the compiler does not know."""
CASES = [(name, t) for name in KERNELS for t in OF_ONE_TYPE.get(name, ["__nv_bfloat16", "float"])]

needs_compiler = pytest.mark.skipif(cuda_compiler.compiler() is None, reason="there is no run-time compiler for CUDA")


def source(name, dtype):
    kernel, types = KERNELS[name]
    return kernel.source([dtype, *(dtype if t == T else t for t in types)])


@needs_compiler
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_compiles_and_keeps_its_arrays_in_registers(name, dtype):
    binary, log = cuda_compiler.compile(source(name, dtype), "sm_90", "--ptxas-options=-v")
    assert binary.startswith(b"\x7fELF")
    assert f" {FRAMES.get(name, 0)} bytes stack frame, 0 bytes spill stores" in log, log


@needs_compiler
def test_a_wrong_source_is_refused():
    with pytest.raises(cuda_compiler.CompileError, match="not_there"):
        cuda_compiler.compile('extern "C" __global__ void f(int* x) { x[0] = not_there; }', "sm_90")


@needs_compiler
def test_what_is_compiled_once_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cuda_compiler, "architecture", lambda: "sm_90")
    first = cuda_compiler.binary_of(source("rows", "float"))
    [file] = (tmp_path / "lmxexp" / "cuda").iterdir()
    assert file.read_bytes() == first
    monkeypatch.setattr(cuda_compiler, "compile", None)
    assert cuda_compiler.binary_of(source("rows", "float")) == first


def test_without_a_device_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(cuda_compiler, "architecture", lambda: None)
    assert cuda_compiler.binary_of(source("rows", "float")) is None
