"""Comparisons that several test files look at from different sides. None of them changes anything."""

import math

import pytest

from lmxexp.compare.comparison import Comparison, compare
from tests.compare.made_runs import make_sweep

KINDS = {"mha": (3.00, 10_000, 0.50, -0.1), "gqa": (2.97, 12_000, 0.45, -0.2), "mqa": (3.02, 13_000, 0.40, -0.3),
         "sliding": (3.10, 9_000, 0.55, -0.4)}  # fmt: skip
"""Loss, tokens per second, peak memory, and slope of the loss at the end: the steeper, the later in front."""
NOISE = (0.004, -0.003, 0.001, -0.002, 0.005, -0.004, 0.002, 0.003, -0.001, 0.0, -0.005, 0.0025)
RATES = (0.0003, 0.001, 0.003, 0.009)


@pytest.fixture(scope="session")
def swept(tmp_path_factory) -> Comparison:
    """Four arms of three seeds, evaluated twenty times; the last run of the last arm diverged."""
    points = [
        {"choices": {"attention": kind}, "seed": seed, "loss": loss + seed / 50 + NOISE[3 * i + seed - 1],
         "steps": 400, "eval_every": 20, "tokens_per_s": speed * (1 + seed / 100), "peak_gb": peak, "slope": slope,
         "record": {"params": 800_000 + 3_000 * i, "flops_per_token": 4_800_000 + 100_000 * i}}
        for i, (kind, (loss, speed, peak, slope)) in enumerate(KINDS.items())
        for seed in (1, 2, 3)
    ]  # fmt: skip
    points[-1] |= {"status": "diverged", "error": "the loss of step 120 is nan"}
    return compare([make_sweep(tmp_path_factory.mktemp("swept") / "s", points, match={"kind": "params"})])


@pytest.fixture(scope="session")
def tuned(tmp_path_factory) -> Comparison:
    """Two arms of two seeds at four learning rates; the second diverges at the highest with one seed."""
    points = [
        {"choices": {"attention": kind}, "settings": {"optim.learning_rate": rate}, "seed": seed, "eval_every": 20,
         "loss": loss + 0.1 * math.log(rate / best) ** 2 + seed / 100 + NOISE[4 * i + j + seed]}
        for i, (kind, loss, best) in enumerate((("mha", 3.0, 0.003), ("gqa", 2.9, 0.001)))
        for j, rate in enumerate(RATES)
        for seed in (1, 2)
    ]  # fmt: skip
    points[-1] |= {"status": "diverged", "error": "the loss of step 12 is inf"}
    tune = {"key": "optim.learning_rate", "values": list(RATES)}
    return compare([make_sweep(tmp_path_factory.mktemp("tuned") / "t", points, tune=tune)])
