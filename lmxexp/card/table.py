"""A card as one table: Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

from lmxexp.card.read import CURVES, Card, Mixer, Spread

NOTHING = "-"
_UNITS = {"train_tokens_per_s": "train tok/s", "decode_tokens_per_s": "decode tok/s"}


def heading(card: Card, task: str) -> str:
    """``lm loss``, ``copying %``."""
    return f"{task} loss" if card.metrics[task] == "eval/loss" else f"{task} %"


def score(card: Card, task: str, value: Spread | None) -> str:
    """Losses with three decimals, accuracies in percent with one; of several seeds also the range."""
    if value is None:
        return NOTHING
    show = (lambda x: f"{x:.3f}") if card.metrics[task] == "eval/loss" else (lambda x: f"{100 * x:.1f}")
    return _spread(value, show)


def rows(card: Card) -> list[list[str]]:
    """Headings, then a row a mixer. Speeds at the shortest and the longest length, state and memory at the longest."""
    lengths = card.lengths
    ends = lengths[:1] + lengths[1:][-1:]
    head = ["mixer", "params", *(heading(card, task) for task in card.metrics)]
    head += [f"{unit} @{n}" for unit in _UNITS.values() for n in ends]
    head += [f"{name} @{n}" for name in ("state bytes", "peak GB") for n in ends[-1:]]
    table = [head]
    for mixer in card.mixers:
        row = [mixer.label, NOTHING if mixer.params is None else f"{mixer.params:,}"]
        row += [score(card, task, mixer.scores.get(task)) for task in card.metrics]
        row += [_spread(_at(mixer, name, n), speed) for name in _UNITS for n in ends]
        row += [_spread(_at(mixer, "state_bytes", n), lambda x: f"{x:,.0f}") for n in ends[-1:]]
        row += [_spread(_at(mixer, "train_peak_gb", n), lambda x: f"{x:.3g}") for n in ends[-1:]]
        table.append(row)
    return table


def speed(value: float) -> str:
    """Three digits: the next one is noise."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def aligned(table: list[list[str]]) -> str:
    """A Markdown table whose columns also line up as plain text."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]

    def line(row: list[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(table[0]), rule, *map(line, table[1:])])


def caveat(card: Card) -> str:
    """After how many steps the scores are, and what a low one does not say."""
    steps = sorted({run.summary["step"] for m in card.mixers for run in m.runs if "step" in run.summary})
    if not steps:
        return ""
    spoken = f"{steps[0]:,} to {steps[-1]:,}" if len(steps) > 1 else f"{steps[0]:,}"
    return (
        f"Scores are after {spoken} steps. A low one says that the task was not learned yet: train.steps=… gives more "
        "time, tune=optim.learning_rate each mixer its own learning rate."
    )


def markdown(card: Card, pictures: list[str]) -> str:
    """The table, what it means, what is missing, and the pictures."""
    n = max((s.n for m in card.mixers for s in m.scores.values()), default=0)
    seeds = f"Mean (smallest to largest) of up to {n} seeds. " if n > 1 else ""
    text = (
        f"{seeds}Parameters are those of the first task's model, since the vocabulary is the task's. Losses are in "
        "nats per token, accuracies over the targets of the evaluation set. Training is forward and backward; decoding "
        "is one sequence with its cache, behind a prompt of the length given; the state is that cache; the peak "
        "includes weights and optimizer."
    )
    parts = ["# Capability card", aligned([[_escaped(c) for c in row] for row in rows(card)]), text]
    if said := caveat(card):
        parts.append(said)
    if card.commands:
        where = f", measured on {'; '.join(card.machines)}" if card.machines else ""
        parts.append(f"Made by {', '.join(f'`{command}`' for command in card.commands)}{where}.")
    if card.notes:
        parts.append("Note:\n\n" + "\n".join(f"- {_escaped(note)}" for note in card.notes))
    parts += [f"![{mixer.label}]({name})" for mixer, name in zip(card.mixers, pictures, strict=True)]
    return "\n\n".join(parts) + "\n"


def as_csv(card: Card) -> str:
    """One line a mixer: mean, smallest, largest and number of seeds of everything, all digits, all lengths."""
    records = []
    for mixer in card.mixers:
        record: dict[str, Any] = {"mixer": mixer.label, "params": mixer.params}
        for task, metric in card.metrics.items():
            record |= _flat(f"{task}/{metric.removeprefix('eval/')}", mixer.scores.get(task))
        for name in CURVES:
            for length in card.lengths:
                record |= _flat(f"{name}/{length}", _at(mixer, name, length))
        records.append(record)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in record.items()} for record in records)
    return text.getvalue()


def as_json(card: Card) -> str:
    """Everything, for programs, with the runs that it comes from; infinities as null."""
    mixers = [
        {
            "mixer": m.label,
            "params": m.params,
            "scores": {task: _plain(s) for task, s in m.scores.items()},
            "curves": {name: {str(n): _plain(s) for n, s in curve.items()} for name, curve in m.curves.items()},
            "runs": [str(run.path) for run in m.runs],
        }
        for m in card.mixers
    ]
    content = {"metrics": card.metrics, "lengths": card.lengths, "mixers": mixers, "notes": card.notes}
    content |= {"commands": card.commands, "machines": card.machines}
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _at(mixer: Mixer, name: str, length: int) -> Spread | None:
    return mixer.curves.get(name, {}).get(length)


def _spread(value: Spread | None, show: Any) -> str:
    if value is None:
        return NOTHING
    low, high = show(value.low), show(value.high)
    return show(value.mean) + (f" ({low} to {high})" if low != high else "")


def _flat(name: str, value: Spread | None) -> dict[str, Any]:
    parts = {"": "mean", "/min": "low", "/max": "high", "/n": "n"}
    return {f"{name}{suffix}": None if value is None else getattr(value, part) for suffix, part in parts.items()}


def _plain(value: Spread) -> dict[str, Any]:
    numbers = {"mean": value.mean, "min": value.low, "max": value.high}
    return {k: v if math.isfinite(v) else None for k, v in numbers.items()} | {"n": value.n}


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
