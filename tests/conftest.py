"""What all tests share: a clean cache and outputs, and one BLAS thread for each of pytest's workers."""

import gc
import os

# Before anything loads a BLAS: several workers with several threads each would only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest

import lmxexp  # noqa: F401  (loads the BLAS, before MLX is imported)


def pytest_collection_finish():
    """Runs, which collect garbage before they begin, need not look at what thousands of collected tests are made of."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_accounts(monkeypatch, tmp_path_factory):
    """No test finds the user's Weights & Biases login or asks a server."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("LMXEXP_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
