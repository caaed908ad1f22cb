"""A profile as text."""

from __future__ import annotations

from collections.abc import Sequence

from lmxexp.profile.result import Profile, Row

_HEADINGS = ("part", "kind", "layers", "calls", "forward ms", "backward ms", "ms", "share", "GFLOP/s")
_LEFT = 3
"""Columns of text."""

_HOW = """\
Each part is a compiled function of its own, on the inputs that it gets in the model: real tokens, the run's shapes,
precision and training mode. Times are medians, of all calls in one step together; modules of one kind are timed once,
on the first one's inputs. *Backward* is the time of a forward and a backward pass of the part, less that of its forward
pass; 0 is less than the clock can tell. Casting weights for mixed precision counts in the part that uses them.

Nothing is scaled to fit. The whole is measured by itself, and *fused, overlapped or unaccounted* is what it takes
beyond the sum of the parts: residual connections, what a kernel costs to launch, layers that are slower than the first
of their kind. It is negative where the whole is faster than its parts, because the compiler fuses across their borders
and the device overlaps them. GFLOP/s count products alone, forward and backward, as `python -m lmxexp.describe` does.
"""


def page(profile: Profile) -> str:
    """``profile.md``."""
    about = profile.about
    lines = [f"# Where a step of {about['name']} goes", "", _about(profile), ""]
    lines += _markdown(_HEADINGS, [*_cells(profile), _whole(profile)])
    lines += ["", f"Measured whole: forward {_ms(profile.forward_ms)} ms, backward {_ms(profile.backward_ms)} ms.", ""]
    lines += ["## Beside the step", "", "A step's share, on the host; batches are made while the device computes.", ""]
    columns = ("part", "kind", "calls a step", "ms")
    lines += _markdown(columns, [(row.part, row.kind, _calls(row), _ms(row.ms)) for row in profile.beside], left=2)
    if profile.other:
        lines += ["", "## Other", "", "Not measured by itself, and so in *fused, overlapped or unaccounted*:", ""]
        lines += [f"- {what}: {why}" for what, why in profile.other.items()]
    return "\n".join([*lines, "", "## How it was measured", "", _HOW])


def table(profile: Profile) -> str:
    """For the terminal, within 100 columns."""
    rows = [_HEADINGS, *_cells(profile), _whole(profile)]
    chosen = [0, 1, 4, 5, 6, 7, 8]
    rows = [tuple(row[i] for i in chosen) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(chosen))]
    aligned = ["  ".join(_aligned(row[i], widths[i], left=i < 2) for i in range(len(chosen))) for row in rows]
    rule = "-" * len(aligned[0])
    beside = ", ".join(f"{row.part} {_ms(row.ms)} ms" for row in profile.beside)
    other = [f"not measured by itself: {', '.join(profile.other)}"] if profile.other else []
    return "\n".join([aligned[0], rule, *aligned[1:-1], rule, aligned[-1], f"beside the step: {beside}", *other])


def _aligned(cell: str, width: int, *, left: bool) -> str:
    return cell.ljust(width) if left else cell.rjust(width)


def _about(profile: Profile) -> str:
    a = profile.about
    micro = f" in {a['n_micro']} parts" if a["n_micro"] > 1 else ""
    compiled = "compiled" if a["compiled"] else "not compiled"
    return (
        f"{a['params']:,} parameters; batch {a['batch_size']} x {a['seq_len']}{micro}; {a['precision']}, {compiled}; "
        f"{a['device'] or 'device unknown'} ({a['backend']}); before step {a['at_step'] + 1:,}."
    )


def _cells(profile: Profile) -> list[tuple[str, ...]]:
    return [_row(profile, row) for row in [*profile.rows, profile.remainder]]


def _row(profile: Profile, row: Row) -> tuple[str, ...]:
    is_part = row is not profile.remainder and row.part in {r.part for r in profile.rows}
    return (
        row.part,
        row.kind,
        ranges(row.layers),
        _calls(row) if is_part else "",
        _ms(row.forward_ms),
        _ms(row.backward_ms),
        _ms(row.ms),
        f"{profile.share(row):.1%}",
        f"{row.gflops:,.0f}" if row.gflops else "",
    )


def _whole(profile: Profile) -> tuple[str, ...]:
    p = profile
    whole = (_ms(p.forward_ms), _ms(p.backward_ms), _ms(p.step_ms), "100.0%", f"{p.gflops:,.0f}")
    return ("whole step", "", "", "1", *whole)


def ranges(layers: Sequence[int]) -> str:
    """``0-2, 5``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _calls(row: Row) -> str:
    return f"{row.calls:.3g}"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if abs(value) >= 0.001 else f"{value:.1g}"


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = _LEFT) -> list[str]:
    rule = ["---" if i < left else "---:" for i in range(len(headings))]
    return ["| " + " | ".join(row) + " |" for row in (headings, rule, *rows)]
