"""A scaling law of loss over model size and training tokens, fitted to finished runs, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from lmxexp.compare.scaling_checks import Interval, check, distinct, warnings
from lmxexp.compare.scaling_solver import minimise

MAX_EXPONENT = 3.0
"""No published law comes near; an exponent that ends here says that the points do not determine it."""
NEGLIGIBLE = 10.0
"""A term smaller than the smallest loss by ``exp`` of this (22,000 times) counts as absent."""
LEVEL = 0.95
_START_EXPONENTS = (0.05, 0.15, 0.3, 0.5, 0.8, 1.3)
_NAMES = {2: ("E", "A", "B", "alpha", "beta"), 1: ("E", "A", "alpha")}


@dataclass(frozen=True)
class Optimum:
    """The best use of a budget of ``flops`` = 6 N D, with 95 % intervals."""

    flops: float
    n_params: float
    n_tokens: float
    loss: float
    n_params_interval: Interval
    n_tokens_interval: Interval
    loss_interval: Interval
    extrapolated: bool
    """N or D lies beyond those of the runs."""


@dataclass(frozen=True)
class ScalingLaw:
    """``L(N, D) = E + A / N^alpha + B / D^beta``, in nats per token.

    Where all runs have the same D (or N), that term is part of E, and its coefficient and exponent are nan.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    intervals: dict[str, Interval]
    """95 %, by the names of the fields; of fitted ones alone."""
    samples: dict[str, np.ndarray]
    """The resamples' coefficients, one array a name."""
    n_params: np.ndarray
    n_tokens: np.ndarray
    loss: np.ndarray
    spread: float
    """Median distance of a run's loss from the law, relative to it."""
    warnings: list[str] = field(default_factory=list)

    @property
    def fitted(self) -> tuple[str, ...]:
        return tuple(self.samples)

    def predict(self, n_params: np.ndarray | float, n_tokens: np.ndarray | float) -> np.ndarray:
        """The law's loss; of a term that was not fitted, whatever is given."""
        return _law({name: getattr(self, name) for name in self.fitted}, n_params, n_tokens)

    def interval(self, n_params: float, n_tokens: float) -> Interval:
        """95 % interval of the law (not of a single run, which scatters around it by its seed)."""
        return _interval(_law(self.samples, n_params, n_tokens))

    def optimal(self, flops: float) -> Optimum:
        """The N and D of least loss among all with ``6 N D = flops``.

        Raises:
            ConfigError: the runs had one size or one number of tokens, so there is nothing to trade.

        Source:
            Hoffmann et al. 2022, equation 4: ``N = G (C/6)^(beta/(alpha+beta))``, ``D = (C/6) / N`` with
            ``G = (alpha A / (beta B))^(1/(alpha+beta))``.
        """
        if len(self.fitted) < 5:
            from lmxexp.cli.errors import refuse

            refuse(
                "the best size for a budget needs a law in both size and tokens, and these runs have one "
                f"{'token budget' if 'alpha' in self.fitted else 'size'}: add runs of at least three of each"
            )
        own = {name: getattr(self, name) for name in self.fitted}
        n, d = _optimum(own, flops)
        ns, ds = _optimum(self.samples, flops)
        inside = (self.n_params.min() <= n <= self.n_params.max()) and (self.n_tokens.min() <= d <= self.n_tokens.max())
        return Optimum(
            flops=flops,
            n_params=float(n),
            n_tokens=float(d),
            loss=float(self.predict(float(n), float(d))),
            n_params_interval=_interval(ns),
            n_tokens_interval=_interval(ds),
            loss_interval=_interval(_law(self.samples, ns, ds)),
            extrapolated=not inside,
        )


def fit(
    n_params: Sequence[float] | np.ndarray,
    n_tokens: Sequence[float] | np.ndarray,
    loss: Sequence[float] | np.ndarray,
    *,
    bootstrap: int = 1000,
    rng_seed: int = 0,
) -> ScalingLaw:
    """Fit the law to finished runs.

    Minimises the Huber loss between ``log L`` and the log-sum-exp of the three terms with the exact gradient, from a
    grid of exponents. Intervals are percentiles over resamples of the runs, each fitted from the best fit; a resample
    with too few distinct sizes or budgets is drawn again.

    Args:
        n_params: N of each run.
        n_tokens: D of each run, tokens trained on.
        loss: of each run, at its end, in nats per token.
        bootstrap: resamples; 1000 of 60 runs take about half a second. The ends of an interval are the 25th of them
            from either side.
        rng_seed: of the resampling.

    Raises:
        ConfigError: too few distinct sizes or budgets, too few runs, or sizes and budgets that grow together.

    Source:
        Hoffmann et al. 2022, Training Compute-Optimal Large Language Models, https://arxiv.org/abs/2203.15556,
        section 3.3 and appendix D.3. Ours differs in the optimiser (BFGS over all starts and resamples at once, where
        theirs is L-BFGS) and in the sum over runs, where theirs is a mean: with a mean it stops early (Besiroglu et al.
        2024, https://arxiv.org/abs/2404.10102).
    """
    N, D, L = (np.asarray(values, dtype=float) for values in (n_params, n_tokens, loss))
    check(N, D, L, bootstrap)
    axes = {"A": N, "B": D}
    kept = [name for name, values in axes.items() if distinct(np.log(values)) > 1]
    x = np.log(np.stack([axes[name] for name in kept]))
    centre = x.mean(1)
    # Centred, a term's size and its exponent hardly depend on each other: L-BFGS needs tens of steps, not thousands.
    x, y = x - centre[:, None], np.log(L)
    bounds = _bounds(x, y)
    starts = _starts(x, y)
    fitted, objective = minimise(starts, np.ones((len(starts), len(y))), x, y, bounds)
    best = fitted[np.argmin(objective)]
    rng = np.random.default_rng(rng_seed)
    weights = np.stack([_draw(rng, x) for _ in range(bootstrap)])
    resampled, _ = minimise(np.tile(best, (bootstrap, 1)), weights, x, y, bounds)
    names = ("E", *kept, *({"A": "alpha", "B": "beta"}[name] for name in kept))
    values = dict(zip(names, _coefficients(best, centre), strict=True))
    samples = dict(zip(names, _coefficients(resampled, centre).T, strict=True))
    intervals = {name: _interval(samples[name]) for name in names}
    residual = np.log(_law(values, N, D)) - y
    return ScalingLaw(
        **{name: float(values.get(name, np.nan)) for name in _NAMES[2]},
        intervals=intervals,
        samples=samples,
        n_params=N,
        n_tokens=D,
        loss=L,
        spread=float(np.median(np.abs(residual))),
        warnings=warnings(names, best, bounds, intervals),
    )


def _law(values: dict, n_params: np.ndarray | float, n_tokens: np.ndarray | float) -> np.ndarray:
    loss = np.asarray(values["E"], dtype=float)
    if "A" in values:
        loss = loss + values["A"] * np.power(np.asarray(n_params, dtype=float), -values["alpha"])
    if "B" in values:
        loss = loss + values["B"] * np.power(np.asarray(n_tokens, dtype=float), -values["beta"])
    return loss


def _optimum(values: dict, flops: float) -> tuple[np.ndarray, np.ndarray]:
    alpha, beta = (np.asarray(values[name], dtype=float) for name in ("alpha", "beta"))
    with np.errstate(divide="ignore", invalid="ignore"):  # exponents of 0 in some resamples: N of 0 or infinity
        log_g = (np.log(alpha * values["A"]) - np.log(beta * values["B"])) / (alpha + beta)
        log_n = log_g + beta / (alpha + beta) * np.log(flops / 6)
        return np.exp(log_n), np.exp(np.log(flops / 6) - log_n)


def _interval(values: np.ndarray) -> Interval:
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return (float("nan"), float("nan"))
    # "lower" and "higher" do not interpolate, so a few infinite ones do no harm.
    low = np.quantile(values, (1 - LEVEL) / 2, method="lower")
    return (float(low), float(np.quantile(values, (1 + LEVEL) / 2, method="higher")))


def _bounds(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(parameters, 2)."""
    k, low = len(x), y.min() - NEGLIGIBLE
    return np.array([(low, y.min()), *[(low, y.max() + 1)] * k, *[(0.0, MAX_EXPONENT)] * k])


def _starts(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """One for every combination of exponents, with terms of equal size."""
    exponents = np.array(list(product(_START_EXPONENTS, repeat=len(x))))
    sizes = np.log(np.array([0.6, *[0.4 / len(x)] * len(x)])) + y.min()
    return np.concatenate([np.tile(sizes, (len(exponents), 1)), exponents], 1)


def _coefficients(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """From centred logarithms to E, A, B, alpha, beta; over any leading axes."""
    k = len(centre)
    exponents = theta[..., 1 + k :]
    return np.concatenate([np.exp(theta[..., :1]), np.exp(theta[..., 1 : 1 + k] + exponents * centre), exponents], -1)


def _draw(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """How often each run is in a resample."""
    n = x.shape[1]
    for _ in range(1000):  # far more than are ever needed
        weights = rng.multinomial(n, np.full(n, 1 / n)).astype(float)
        if all(distinct(values[weights > 0]) >= 3 for values in x):
            return weights
    return np.ones(n)
