"""Less time for the speed of matrix products than a figure wants."""

import pytest

from lmxexp.bench import suite


@pytest.fixture(autouse=True)
def _short_peak(monkeypatch):
    monkeypatch.setattr(suite, "PEAK_SECONDS", 0.05)
