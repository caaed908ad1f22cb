"""A `Description` for the eye."""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console
from rich.table import Table

from lmxexp.counts import Part, total
from lmxexp.describe import Description
from lmxexp.train.memory import in_bytes, text_of

_PLAIN_WIDTH = 120
"""Columns of a file or pipe, which has no width of its own."""


def show(description: Description) -> None:
    """Print it."""
    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False)
    d = description
    console.print(f"[bold]{d.name}[/]: {d.params:,} parameters, {d.flops:,} FLOPs a token forward", markup=True)
    console.print(f"vocabulary {d.vocab_size:,} ({d.vocab_source}); batch {d.batch_size} x {d.seq_len}; {d.precision}")
    if d.devices:
        console.print(f"devices    {d.devices}", markup=False)
    if d.ramp:
        console.print(f"ramp       {d.ramp}", markup=False)
    console.print(f"layers     {d.layout}", markup=False)
    console.print(_parts(d))
    console.print(_facts(d))


def _parts(d: Description) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for heading in ("parameters", "active", "FLOPs/token", "between positions", "share"):
        table.add_column(heading, justify="right")

    def row(name: str, part: Part, style: str = "") -> None:
        flops = part.flops + part.mixing_flops
        numbers = (part.params, part.active_params, flops, part.mixing_flops)
        table.add_row(name, *(f"{n:,}" if n else "-" for n in numbers), f"{flops / max(d.flops, 1):.1%}", style=style)

    for kind in d.layers:
        row(f"{kind.count} x {kind.name}  {kind.made_of}", total(kind.parts))
        for name, part in kind.parts.items():
            row(f"    {name}", part, "dim")
    for name, part in d.outside.items():
        row("norms around the layers" if name == "norms" else name, part)
    table.add_section()
    row("total", total(d.parts), "bold")
    return table


def _facts(d: Description) -> Table:
    table = Table.grid(padding=(0, 2))
    if d.frozen_params:
        table.add_row("frozen", f"{d.frozen_params:,} parameters that no gradient moves")
    table.add_row("training", f"{d.training_flops:,} FLOPs a token: forward, and backward at twice its cost")
    table.add_row(
        "state",
        f"{d.state:,} elements of a sequence of {d.seq_len:,}: {in_bytes(2 * d.state)} in bf16, "
        f"{in_bytes(4 * d.state)} in fp32; each position after it adds {d.state_growth:,.0f}",
    )
    for kind in d.layers if len(d.layers) > 1 else []:
        table.add_row("", f"{kind.state:,} of them in {kind.name}")
    for i, part in enumerate(d.optimizer):
        rates = f"{part.kind}, {part.bytes_per_param:.3g} bytes of state for each parameter"
        group = f"{part.group}: {part.params:,} parameters by " if part.group else ""
        table.add_row("" if i else "optimizer", group + rates)
    table.add_row("memory", _memory(d))
    return table


def _memory(d: Description) -> str:
    m = d.memory
    if m is None:
        return f"no estimate: {d.memory_missing}"
    return ("of one device, " if d.devices else "") + text_of(m)
