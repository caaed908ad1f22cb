"""Whether numbers of different runs mean the same thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lmxexp.compare.axes import hashable
from lmxexp.compare.measure import value
from lmxexp.compare.read import Run

DEFAULT_METRIC = "eval/loss"
_PER_BYTE = "eval/bpb"
_OTHER_TEXT = "the runs are not evaluated on the same text"
_OTHER_CONTEXT = "some runs are evaluated with data.document_mask=true, within documents, and others are not"


def choose_metric(runs: Sequence[Run], asked: str | None) -> tuple[str, list[str]]:
    """The metric to compare by.

    A loss per token means little between tokenizers, whose tokens are of different length; bits per byte of the same
    text do. And no loss means anything between different validation texts.

    Args:
        runs: that ended well.
        asked: the user's; None: ``eval/loss``, or ``eval/bpb`` if the tokenizers differ.

    Returns:
        The metric, and what has to be said.
    """
    metric = DEFAULT_METRIC if asked is None else asked
    if len({run.fingerprint for run in runs}) < 2 or not _is_of_text(metric):
        return metric, []
    if len({_is_masked(run) for run in runs}) > 1:
        return metric, [_OTHER_CONTEXT]
    if len({_tokenizer(run) for run in runs}) > 1:
        return _between_tokenizers(runs, asked)
    if len({_evaluated(run) for run in runs}) > 1:
        return metric, [f"{_OTHER_TEXT} (data.fingerprint and the size of the validation split differ)"]
    note = "the data differ (data.fingerprint), though the validation splits are of one size; they are taken for equal"
    return metric, [note]


def why_not_comparable(runs: Sequence[Run], metric: str) -> str:
    """Why the metric means something else in some of the runs than in others; empty where it does not."""
    if len({run.fingerprint for run in runs}) < 2 or not _is_of_text(metric):
        return ""
    if len({_is_masked(run) for run in runs}) > 1:
        return _OTHER_CONTEXT
    if len({_tokenizer(run) for run in runs}) > 1:
        return "" if metric.endswith("/bpb") else f"the tokenizers differ, and {metric} is per token"
    return _OTHER_TEXT if len({_evaluated(run) for run in runs}) > 1 else ""


def same_surroundings(runs: Sequence[Run]) -> list[str]:
    """Warnings about what differs between runs and is in no configuration: precision, code, machine."""
    warnings = []
    for what, of, consequence in _SURROUNDINGS:
        found: dict[str, int] = {}
        for run in runs:
            name = of(run)
            if name is not None:
                found[name] = found.get(name, 0) + 1
        if len(found) > 1:
            each = ", ".join(f"{name} ({n} run{'s' if n > 1 else ''})" for name, n in found.items())
            warnings.append(f"{what} differs: {each}; {consequence}")
    return warnings


def _is_of_text(metric: str) -> bool:
    """Whether a metric depends on the text or the examples that it is computed on."""
    return metric.startswith(("eval/", "best/", "train/"))


def _between_tokenizers(runs: Sequence[Run], asked: str | None) -> tuple[str, list[str]]:
    if asked is not None and not asked.endswith("/bpb"):
        return asked, [f"the tokenizers differ, and {asked} is per token: --metric {_PER_BYTE} compares bytes of text"]
    if not all(value(run, _PER_BYTE) is not None for run in runs):
        why = f"the tokenizers differ, {DEFAULT_METRIC} is per token, and not all runs have {_PER_BYTE}"
        return asked or DEFAULT_METRIC, [why]
    said = [] if asked else [f"the tokenizers differ: {_PER_BYTE} is compared, as {DEFAULT_METRIC} is per token"]
    sizes = {(run.record.get("data") or {}).get("eval_bytes") for run in runs}
    if len(sizes) > 1:
        said.append(
            f"the evaluated texts are not of one size ({', '.join(f'{s:,}' for s in sorted(filter(None, sizes)))} "
            f"bytes): data.max_eval_tokens counts tokens; without it all evaluate the whole split"
        )
    return _PER_BYTE, said


def _tokenizer(run: Run) -> Any:
    node = {k: v for k, v in run.flat.items() if k.startswith("tokenizer.") and not k.endswith("path")}
    return (run.choices.get("tokenizer"), run.record.get("vocab_size"), hashable(node))


def _evaluated(run: Run) -> Any:
    data = run.record.get("data") or {}
    return tuple(data.get(key) for key in ("eval_targets", "eval_bytes"))


def _is_masked(run: Run) -> bool:
    return bool((run.record.get("data") or {}).get("document_mask"))


def _device(run: Run) -> str | None:
    device = run.record.get("device") or {}
    return device.get("name")


def _commit(run: Run) -> str | None:
    git = run.record.get("git") or {}
    if not git.get("commit"):
        return None
    return str(git["commit"])[:10] + (" with changes" if git.get("dirty") else "")


_SURROUNDINGS: tuple[tuple[str, Callable[[Run], str | None], str], ...] = (
    ("precision", lambda run: run.record.get("precision"), "differences may be due to it"),
    ("the code (git commit)", _commit, "differences may be due to it"),
    ("the device", _device, "tokens/s, time and memory are not comparable"),
)
