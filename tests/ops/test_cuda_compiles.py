"""Every CUDA kernel by NVIDIA's run-time compiler, which needs no GPU, with stand-ins for MLX's headers."""

import ctypes
import importlib.util
from pathlib import Path

import pytest

from lmxexp.ops import cast, cholesky, cuda, embed, gated, head_loss, rms_norm, rope, sum_of_squares

HEADERS = {"mlx/backend/cuda/device/utils.cuh": "cuda_bf16.h", "cooperative_groups.h": "cuda_fp16.h"}
T = "T"
KERNELS = {
    "log_z": (head_loss._LOG_Z, [T, "int"], ["float"]),
    "logit_gradient": (head_loss._GRADIENT, [T, "float", "int", "float", "float", "int"], [T]),
    "silu_gradient": (gated._SILU_GRADIENT, [T, T, T, "long long"], [T, T]),
    "rows": (embed._ROWS, [T, "int", "int"], [T]),
    "sum_rows": (embed._SUM_ROWS, [T, "int", "int", "int"], [T]),
    "rope": (rope._TURN, [T, "float", "int"], [T]),
    "rms_norm": (rms_norm._kernel(3, False), [T, T, T, "int", "float"], [T, "float"]),
    "rms_norm beside": (rms_norm._kernel(3, True), [T, T, T, T, "int", "float"], [T, "float"]),
    "sum_of_squares": (sum_of_squares._kernel(9), [T] * 9 + ["int"], ["float"]),
    "cast": (cast._kernel(128), ["float"] * 128 + ["int"], [T] * 128),
    "inverse_cholesky": (cholesky._INVERSE_FACTOR, ["float", "int"], ["float"]),
}
OF_ONE_TYPE = {"cast": ["__nv_bfloat16"], "inverse_cholesky": ["float"]}
CASES = [(name, t) for name in KERNELS for t in OF_ONE_TYPE.get(name, ["__nv_bfloat16", "float"])]


def compiler() -> tuple[ctypes.CDLL, Path] | None:
    """The library, which comes with PyTorch, and its headers."""
    found = importlib.util.find_spec("nvidia")
    for root in map(Path, (found and found.submodule_search_locations) or []):
        for library in sorted(root.glob("cu*/lib/libnvrtc.so.*")):
            for builtins in library.parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
            headers = library.parents[1] / "include"
            if (headers / "cuda_bf16.h").exists():
                return ctypes.CDLL(str(library)), headers
    return None


FOUND = compiler()


@pytest.mark.skipif(FOUND is None, reason="there is no run-time compiler for CUDA")
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_compiles_and_keeps_its_arrays_in_registers(name, dtype):
    assert FOUND is not None
    library, headers = FOUND
    kernel, inputs, outputs = KERNELS[name]
    header = cuda._HEADER
    for theirs, ours in HEADERS.items():
        assert theirs in header
        header = header.replace(theirs, ours)
    arguments = [f"const {t}* {n}" for t, n in zip(inputs, kernel._inputs, strict=True)]
    arguments += [f"{t}* {n}" for t, n in zip(outputs, kernel._outputs, strict=True)]
    source = f"{header}\nusing T = {dtype};\n__global__ void kernel({', '.join(arguments)}) {{{kernel._source}}}\n"
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    options = [b"--gpu-architecture=sm_90", b"-I" + str(headers).encode(), b"--ptxas-options=-v"]
    failed = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    text = log.value.decode()
    library.nvrtcDestroyProgram(ctypes.byref(program))
    assert not failed, text
    assert " 0 bytes spill stores" in text, text
