"""Which BLAS MLX gets on Linux, that it computes the same, and what is said when it cannot be had.

A process loads MLX once, so every case is a process of its own.
"""

import ctypes
import json
import math
import os
import subprocess
import sys
import textwrap
import time
from importlib.util import find_spec
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from lmxexp import blas
from tests.pythonpath import PYTHONPATH

ROOT = Path(__file__).parents[1]
linux_cpu = pytest.mark.skipif(
    sys.platform != "linux" or mx.cuda.is_available(), reason="other platforms are left as they are"
)
needs_openblas = pytest.mark.skipif(find_spec("scipy_openblas32") is None, reason="scipy-openblas32 is not installed")

# Replaces what `import lmxexp` did with LMXEXP_BLAS=off by another try, under conditions that the script sets up.
AGAIN = """
import os
from lmxexp import blas
def again(wanted):
    os.environ["LMXEXP_BLAS"] = wanted
    blas._outcome = None
    blas.load()
"""


def python(script: str, *, choice: str = "auto", env: dict[str, str] | None = None, start: str | None = None) -> dict:
    """Runs a script in a fresh interpreter that starts with ``import lmxexp``; returns the JSON that it prints last."""
    start = "from lmxexp import blas" if start is None else start
    code = "\n".join(["import json", start, textwrap.dedent(script)])
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "LMXEXP_BLAS": choice, **(env or {})}
    environment.pop("LD_PRELOAD", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


REPORT = "print(json.dumps({'kind': blas.which().kind, 'path': blas.which().path, 'warning': blas.warning()}))"

PRODUCTS = """
import time
import mlx.core as mx, numpy as np
rng = np.random.default_rng(0)
worst = {}
for name, eps in (("float32", 2.0**-24), ("float64", 2.0**-53), ("complex64", 2.0**-22)):
    worst[name] = 0.0
    # fp64 is checked in 80 bits, for which NumPy has no fast product.
    size = 1024 if name == "float32" else 200
    for m, k, n in ((size, size, size), (257, 129, 65), (1, 300, 7), (64, 3, 511)):
        a, b = rng.normal(size=(m, k)), rng.normal(size=(n, k))
        if name == "complex64":
            a, b = a + 1j * rng.normal(size=a.shape), b + 1j * rng.normal(size=b.shape)
        a, b = a.astype(name), b.astype(name)
        with mx.stream(mx.cpu):
            # mx.array makes fp32 of NumPy's fp64 unless told.
            x, y = mx.array(a, dtype=getattr(mx, name)), mx.array(b, dtype=getattr(mx, name))
            got = np.array(x @ y.T)
        wide = {"float32": np.float64, "float64": np.longdouble, "complex64": np.complex128}[name]
        error = np.abs(got - a.astype(wide) @ b.T.astype(wide))
        # What rounding can do at most to a sum of k products (Higham, Accuracy and Stability, equation 3.13).
        bound = (k + 2) * eps * (np.abs(a).astype(np.float64) @ np.abs(b).T.astype(np.float64))
        worst[name] = max(worst[name], float((error / bound).max()))
x = mx.random.normal((1024, 1024))
mx.eval(x)
seconds = []
for _ in range(3):
    start = time.perf_counter()
    mx.eval(x @ x)
    seconds.append(time.perf_counter() - start)
print(json.dumps({"worst": worst, "seconds": min(seconds), "kind": blas.which().kind}))
"""


@linux_cpu
@needs_openblas
def test_openblas_computes_the_same_at_least_four_times_as_fast():
    fast, slow = python(PRODUCTS, choice="scipy"), python(PRODUCTS, choice="off")
    assert (fast["kind"], slow["kind"]) == ("openblas-scipy", "reference")
    for run in (fast, slow):
        assert all(0 < ratio < 1 for ratio in run["worst"].values()), run
    assert slow["seconds"] > 4 * fast["seconds"]


@linux_cpu
@needs_openblas
@pytest.mark.parametrize(("choice", "target"), [("scipy", "/proc/self/fd/"), ("off", "libblas")])
def test_the_dynamic_loader_says_so_too(choice, target, tmp_path):
    log = {"LD_DEBUG": "bindings", "LD_DEBUG_OUTPUT": str(tmp_path / "log")}
    kind = python("import mlx.core\nprint(json.dumps(blas.which().kind))", choice=choice, env=log)
    lines = [line for file in tmp_path.iterdir() for line in file.read_text(errors="replace").splitlines()]
    for function in ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm"):
        bound = [line for line in lines if f"`{function}'" in line and "libmlx.so" in line.split(" to ")[0]]
        assert bound
        assert all(target in line.split(" to ")[1] for line in bound)
    assert kind == ("reference" if choice == "off" else "openblas-scipy")


@linux_cpu
def test_off_leaves_mlx_its_own():
    result = python(REPORT, choice="off")
    assert result["kind"] == "reference"
    assert "mlx" in result["path"]
    assert "LMXEXP_BLAS=off" in result["warning"]


@linux_cpu
@needs_openblas
def test_loading_is_idempotent_cheap_and_imports_nothing_heavy():
    result = python(
        """
        import sys, os, time
        heavy = [m for m in ("mlx.core", "numpy", "scipy_openblas32") if m in sys.modules]
        files = "/proc/self/fd"
        tables = lambda: sum("lmxexp-blas" in os.path.realpath(f"{files}/{n}") for n in os.listdir(files))
        first = tables()
        start = time.perf_counter()
        blas.load()
        seconds = time.perf_counter() - start
        print(json.dumps([heavy, first, tables(), seconds, blas.warning()]))
        """,
        choice="scipy",
    )
    heavy, first, second, seconds, warning = result
    assert (heavy, first, second, warning) == ([], 1, 1, None)
    assert seconds < 0.01


@linux_cpu
@needs_openblas
def test_nothing_is_needed_but_the_package(tmp_path):
    """No compiler, no place to write, no home."""
    read_only = tmp_path / "read_only"
    read_only.mkdir(mode=0o500)
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "LMXEXP_CACHE"), str(read_only))
    result = python(REPORT, choice="scipy", env={**places, "PATH": "/nonexistent", "CC": "/nonexistent"})
    assert (result["kind"], result["warning"]) == ("openblas-scipy", None)
    assert list(read_only.iterdir()) == []


@linux_cpu
@needs_openblas
def test_mlx_imported_first_is_said():
    result = python(REPORT, choice="auto", start="import mlx.core\nfrom lmxexp import blas")
    assert result["kind"] == "reference"
    assert "import lmxexp first" in result["warning"]


@linux_cpu
def test_without_any_openblas_one_line_says_what_to_do():
    result = python(
        f"blas._candidates = lambda wanted: []\nagain('auto')\n{REPORT}",
        choice="off",
        start=AGAIN,
    )
    assert result["kind"] == "reference"
    assert "pip install scipy-openblas32" in result["warning"]
    assert "\n" not in result["warning"]


@linux_cpu
@pytest.mark.parametrize(
    ("choice", "parts"),
    [
        ("fast", ["LMXEXP_BLAS=fast", "auto, system, scipy, off"]),
        ("/no/such/library.so", ["LMXEXP_BLAS=/no/such/library.so", "No such file", "unset LMXEXP_BLAS"]),
        (__file__, ["invalid ELF header", "unset LMXEXP_BLAS"]),
        ("path of libm", ["has no cblas_sgemm", "unset LMXEXP_BLAS"]),
    ],
)
def test_a_choice_that_cannot_be_had_is_an_error_and_import_goes_on(choice, parts):
    if choice == "path of libm":
        choice = blas._object_of(ctypes.CDLL("libm.so.6").cos)
    script = """
        from lmxexp.interfaces import ConfigError
        try:
            message = blas.warning()
        except ConfigError as error:
            message = f"error: {error}"
        print(json.dumps(message))
    """
    message = python(script, choice=choice)
    assert message.startswith("error: ")
    for part in parts:
        assert part in message


@linux_cpu
@needs_openblas
def test_system_library_is_preferred_and_64_bit_integers_are_refused():
    # The package's library stands in for the system's.
    script = """
        stand_in = blas._candidates("scipy")[0]
        blas._SYSTEM_NAMES = ("libno-such-openblas.so", stand_in)
        config, answers = blas._openblas_config, []
        blas._openblas_config = lambda *a: config(*a) + " USE64BITINT"
        again("system")
        answers.append(blas._outcome.problem)
        again("auto")
        answers.append(blas._outcome.problem)
        blas._openblas_config = config
        again("system")
        answers.append(blas._outcome.problem)
        again("scipy")
        answers.append(blas._outcome.problem)
        print(json.dumps([*answers, blas.which().path == stand_in]))
    """
    refused, fallen_back, loaded, second, same_path = python(script, choice="off", start=AGAIN)
    assert "64-bit integers" in refused
    assert "64-bit integers" in fallen_back
    assert loaded is None
    assert "comes too late" in second
    assert same_path


@linux_cpu
@needs_openblas
def test_products_repeat_bitwise_between_runs_and_threads():
    script = """
        import hashlib
        import mlx.core as mx, numpy as np
        digest, same = hashlib.sha256(), True
        for m, k, n in ((1024, 1024, 1024), (2048, 128, 344), (128, 2048, 344), (257, 129, 65)):
            a, b = (mx.random.normal(s, key=mx.random.key(0)) for s in ((m, k), (k, n)))
            first = np.array(a @ b)
            same &= all(np.array_equal(first, np.array(a @ b)) for _ in range(3))
            digest.update(first.tobytes())
        print(json.dumps([same, digest.hexdigest()]))
    """
    runs = [python(script, choice="scipy", env={"OPENBLAS_NUM_THREADS": "2"}) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0][0]


@linux_cpu
@needs_openblas
@pytest.mark.parametrize("order", ["before", "after"])
def test_other_libraries_and_linear_algebra_work_beside_it(order):
    script = """
        import importlib.util
        import numpy as np
        a = np.random.default_rng(0).normal(size=(120, 120))
        spd = a @ a.T + 120 * np.eye(120)
        truth = np.linalg.eigvalsh(spd)

        def others():
            import scipy.linalg
            assert np.allclose(scipy.linalg.eigvalsh(spd), truth)
            assert np.allclose(scipy.linalg.blas.sgemm(1.0, a, a), a @ a, atol=1e-3)
            if importlib.util.find_spec("torch"):
                import torch
                t = torch.tensor(a)
                assert np.allclose((t.float() @ t.float()).numpy(), a @ a, atol=1e-3)
                assert np.allclose(torch.linalg.eigvalsh(t @ t.T).numpy(), np.linalg.eigvalsh(a @ a.T))

        def mlx():
            import mlx.core as mx
            with mx.stream(mx.cpu):
                x, s = mx.array(a, dtype=mx.float64), mx.array(spd, dtype=mx.float64)
                assert np.allclose(np.array(mx.linalg.eigvalsh(s)), truth)
                q, r = mx.linalg.qr(x)
                assert np.allclose(np.array(q @ r), a)
                u, d, v = mx.linalg.svd(x)
                assert np.allclose(np.array(d), np.linalg.svd(a, compute_uv=False))
                assert np.allclose(np.array(mx.linalg.cholesky(s)), np.linalg.cholesky(spd))
                assert np.allclose(np.array(mx.linalg.inv(s)), np.linalg.inv(spd))
                assert np.allclose(np.array(mx.linalg.solve(s, x)), np.linalg.solve(spd, a))
    """
    calls = "\n".join(["others()", "mlx()", "others()"] if order == "before" else ["mlx()", "others()", "mlx()"])
    script = textwrap.dedent(script) + f"\n{calls}\nprint(json.dumps(blas.which().kind))"
    start = "import numpy\nfrom lmxexp import blas" if order == "before" else None
    assert python(script, choice="scipy", start=start) == "openblas-scipy"


@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
def test_symbol_table_publishes_addresses():
    library = ctypes.CDLL(None)
    addresses = {"lmxexp_test_abs": blas._address(library.abs), "lmxexp_test_labs": blas._address(library.labs)}
    with open("/proc/self/exe", "rb") as file:
        header = file.read(64)
    number = os.memfd_create("test")
    os.write(number, blas.symbol_table(addresses, header))
    table = ctypes.CDLL(f"/proc/self/fd/{number}")
    assert table.lmxexp_test_abs(-3) == 3
    assert {name: blas._address(getattr(table, name)) for name in addresses} == addresses
    assert not hasattr(table, "lmxexp_test_nothing")
    assert not hasattr(ctypes.CDLL(None), "lmxexp_test_abs")
    with pytest.raises(OSError, match="little-endian"):
        blas.symbol_table(addresses, b"\x7fELF\x02\x02" + header[6:])


def test_other_platforms_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert blas.which() == blas.Blas("accelerate")
    assert blas._load("auto") == blas._Outcome()
    assert blas._load("scipy").is_error


def test_cuda_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(blas, "_mlx_has_cuda", lambda: True)
    monkeypatch.setattr(blas, "_publish", lambda name: pytest.fail("loaded a BLAS"))
    assert blas.which() == blas.Blas("cuda")
    assert blas._load("auto") == blas._Outcome()
    monkeypatch.setattr(blas, "_outcome", blas._Outcome())
    assert blas.warning() is None


def test_measure_keeps_to_its_time_and_leaves_randomness_alone():
    mx.random.seed(5)
    before = np.array(mx.random.state[0])
    start = time.perf_counter()
    rate = blas.measure(mx.float32, max_size=512, budget_s=0.1)
    assert time.perf_counter() - start < 1
    assert math.isfinite(rate)
    assert rate > 0.05
    assert np.array_equal(np.array(mx.random.state[0]), before)
