"""Data sets in temporary directories: nothing is read from or left in the user's caches."""

from functools import partial

import pytest

from tests.data import kinds


@pytest.fixture
def hf_cache(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


@pytest.fixture
def make(monkeypatch, tmp_path, request):
    """`kinds.make` with the stand-ins of the kind and a cache of the test's own."""
    monkeypatch.setattr("lmxexp.data.python_stdlib.stdlib_root", lambda: tmp_path / "library")
    monkeypatch.setenv("LMXEXP_CACHE", str(tmp_path / "cache"))
    inputs = kinds.write_inputs(tmp_path / "inputs")

    def made(kind, *args, **kwargs):
        if kind in kinds.OF_DATASETS:
            request.getfixturevalue("hf_cache")
        if kind == "python_stdlib" and not (tmp_path / "library").exists():
            kinds.write_library(tmp_path / "library")
        return partial(kinds.make, kind, *args)(**{**inputs.get(kind, {}), **kwargs})

    return made
