"""How a step is computed so that it fits into memory: in how many parts, and what of it once more."""

from __future__ import annotations

import bisect
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from lmxexp import device
from lmxexp.interfaces import ConfigError
from lmxexp.model.language_model import Remat

if TYPE_CHECKING:
    from lmxexp.train.memory import Ledger
    from lmxexp.train.settings import TrainSettings

SPARE = 0.9
"""Share of the limit that an estimated peak may take."""

ENOUGH_TOKENS = 4096
"""Of a part: to split a batch into parts of so many, or more, is taken to cost less than to compute anything twice."""


LARGEST = 2**31 - 1
"""Elements of an array. Of larger ones MLX takes some for others, without a word: of a part of their columns
(ml-explore/mlx#4539, #4548), in products on Metal (#3822)."""


class Way(NamedTuple):
    """To compute a step."""

    n_micro: int
    remat: Remat


def fitted(
    settings: TrainSettings, ledger: Ledger, *, known: Mapping[str, Any] | None = None, beyond: Way | None = None
) -> TrainSettings:
    """The settings with a number for ``n_micro=auto`` and a word for ``remat=auto``: of the ways that are estimated to
    fit, the first of `ways`.

    Args:
        settings: as configured; returned as they are where nothing is auto.
        ledger: of the run.
        known: the record of the run, which keeps what was chosen when it began.
        beyond: what did not fit.

    Raises:
        ConfigError: nothing fits; or a part has more logits than `LARGEST`.
    """
    autos = settings.autos
    kept = {key: known[key] for key in known.get("auto", autos) if key in autos and key in known} if known else {}
    limit_gb = settings.memory_limit_gb or device.memory_to_fit_gb()
    if len(kept) == len(autos):
        settings = dataclasses.replace(settings, **kept)
        if ledger.n_logits(settings.parts) > LARGEST:
            raise _too_many_logits(settings.parts, ledger)
        _warn_if_too_large(Way(settings.parts, settings.chosen_remat), ledger, limit_gb)
        return settings
    groups = ways(dataclasses.replace(settings, **kept), beyond)
    groups = [[way for way in group if ledger.n_logits(way.n_micro) <= LARGEST] for group in groups]
    groups = [group for group in groups if group]
    if not groups:
        raise _too_many_logits(settings.batch_size if settings.n_micro == "auto" else settings.parts, ledger)
    way, why = groups[0][0], ""
    if limit_gb is not None:
        limit = SPARE * limit_gb * device.GB
        try:
            fitting = (first_fitting(group, lambda way: ledger.of(*way).peak <= limit) for group in groups)
            way = next((way for way in fitting if way is not None), None)
        except ValueError as error:
            why = f", as there is no estimate of its memory ({error})"
        else:
            if way is None:
                raise _nothing_fits(autos, groups[-1][-1], ledger, limit_gb)
            why = f", which takes {ledger.text(*way)}; the limit is {device.in_gb(limit_gb)}"
    elif beyond is not None:
        why = " from here on"
    values = {key: getattr(way, key) for key in autos}
    if why:
        print(", ".join(f"train.{key}=auto: {value}" for key, value in values.items()) + why, file=sys.stderr)
    return dataclasses.replace(settings, **values)


def ways(settings: TrainSettings, beyond: Way | None = None) -> list[list[Way]]:
    """All that the settings allow, in groups, the fastest first; within a group each takes less memory than the one
    before.

    Parts come before recomputation as long as they have `ENOUGH_TOKENS`, recomputation before smaller ones.

    Args:
        beyond: something that did not fit: only what is no more in either respect, and less in one.
    """
    remats: list[Remat] = [settings.remat] if settings.remat != "auto" else list(get_args(Remat))
    numbers = [settings.n_micro] if settings.n_micro != "auto" else _divisors(settings.batch_size)
    if beyond is not None:
        remats = remats[remats.index(beyond.remat) :] if beyond.remat in remats else remats
        numbers = [n for n in numbers if n >= beyond.n_micro]
    tokens = settings.batch_size * settings.seq_len
    large = [n for n in numbers if tokens // n >= ENOUGH_TOKENS] or numbers[:1]
    groups = [[Way(n, remat) for n in large] for remat in remats]
    groups += [[Way(n, remat) for remat in remats] for n in numbers if n not in large]
    groups = [[way for way in group if way != beyond] for group in groups]
    return [group for group in groups if group]


def first_fitting(group: Sequence[Way], fits: Callable[[Way], bool]) -> Way | None:
    """Of ways that take less and less memory; the second may take more than the first, as two parts keep a sum of
    gradients that one has no need of."""
    if len(group) <= 3:  # of recomputation, which by the estimate may take more where there are few layers
        return next((way for way in group if fits(way)), None)
    if fits(group[0]):
        return group[0]
    i = bisect.bisect_left(group, True, lo=1, key=fits)
    return group[i] if i < len(group) else None


def ahead_gb(settings: TrainSettings) -> float | None:
    """Up to what MLX makes arrays ahead of their computation on a CPU (`lmxexp.device.limit_memory`): what an estimate
    may take. None on a GPU, where MLX would also give up what it keeps for later arrays, and each time wait for that.
    """
    if device.is_gpu():
        return None
    limit_gb = settings.memory_limit_gb or device.memory_to_fit_gb()
    return None if limit_gb is None else SPARE * limit_gb


def _warn_if_too_large(way: Way, ledger: Ledger, limit_gb: float | None) -> None:
    """On a CPU, where no error comes when memory runs out: MLX goes on without it, and the process is gone."""
    if device.is_gpu() or limit_gb is None or ledger.at_least(way.n_micro) < limit_gb * device.GB / 32:
        return
    try:
        peak = ledger.of(*way).peak
    except ValueError:  # there is no estimate
        return
    if peak > limit_gb * device.GB:
        print(
            f"a step takes {ledger.text(*way)}; there are {device.in_gb(limit_gb)}, and where they do not suffice the "
            "process ends without another word: train.n_micro=auto computes it in parts that fit, train.remat=auto "
            "keeps less of it",
            file=sys.stderr,
        )


def _nothing_fits(autos: Sequence[str], least: Way, ledger: Ledger, limit_gb: float) -> ConfigError:
    keys = ", ".join(f"train.{key}=auto" for key in autos)
    how = "one sequence at a time" if "n_micro" in autos else "a step that computes its layers once more"
    mends = "" if "n_micro" in autos else "train.n_micro=auto, "
    return ConfigError(
        f"{keys}: not even {how} fits into {device.in_gb(limit_gb)}: it takes {ledger.text(*least)}; choose {mends}a "
        f"smaller model or train.seq_len, or a value for {' and '.join(f'train.{key}' for key in autos)} to try anyway"
    )


def _too_many_logits(n_micro: int, ledger: Ledger) -> ConfigError:
    batch_size, seq_len = ledger.settings.batch_size, ledger.settings.seq_len
    enough = next((n for n in _divisors(batch_size) if n > n_micro and ledger.n_logits(n) <= LARGEST), None)
    mend = (
        "train.seq_len, or the vocabulary, has to be smaller"
        if enough is None
        else f"set train.n_micro={enough}, or auto"
    )
    return ConfigError(
        f"train.n_micro={n_micro}: a part of {batch_size // n_micro} x {seq_len:,} tokens has "
        f"{ledger.n_logits(n_micro):,} logits, and MLX computes wrongly with arrays of more than {LARGEST:,} elements; "
        f"{mend}"
    )


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
