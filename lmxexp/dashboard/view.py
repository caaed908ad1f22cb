"""The workspace of a sweep: which panels, over which runs, grouped by what."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

from lmxexp.dashboard.contents import Contents, Varied

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import LinePlot, ParallelCoordinatesPlot, ScatterPlot
    from wandb_workspaces.workspaces import RunsetSettings, Section, Workspace

TOKENS = "tokens"
LOSS, SPEED, MEMORY, PARAMS = "summary/eval/loss", "summary/perf/tokens_per_s", "summary/mem/peak_gb", "summary/params"
"""Of a run's summary, where `lmxexp.logger.wandb` puts what ``summary.json`` holds: the numbers that
``python -m lmxexp.compare`` reads, the median speed for one, and not the last step's."""

_MOST_RUNS = 1000


def build(contents: Contents, entity: str = "") -> Workspace:
    """The workspace; nothing is sent.

    The runs are those of the sweep's group, but for the one that holds the table of `lmxexp.compare`. They are grouped
    by all that differs between them except the seeds, and the panels follow that: a line is the mean over the seeds,
    its band their minimum and maximum.
    """
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=contents.project,
        name=_plain_name(f"Sweep {contents.name}"),
        sections=_sections(contents),
        settings=ws.WorkspaceSettings(x_axis=TOKENS, max_runs=_limit(contents)),
        runset_settings=_runs(contents),
    )


def _sections(contents: Contents) -> list[Section]:
    import wandb_workspaces.workspaces as ws

    curves: list[Any] = [_curve("eval/loss", contents), _curve("train/loss", contents)]
    if len(contents.grouped) > 1:  # and what each of them does, over all of the others
        curves += [_curve("eval/loss", contents, by=varied) for varied in contents.grouped]
    speed: list[Any] = [_curve("perf/tokens_per_s", contents), _curve("mem/peak_gb", contents)]
    tokens = ws.SectionPanelSettings(x_axis=TOKENS)
    two, one = ws.SectionLayoutSettings(columns=2, rows=2), ws.SectionLayoutSettings(columns=1, rows=1)
    scatters: list[Any] = [_scatter(x) for x in (SPEED, MEMORY, PARAMS)]
    return [
        ws.Section(name="Loss", panels=curves, is_open=True, layout_settings=two, panel_settings=tokens),
        ws.Section(
            name="Loss against speed, memory and size",
            panels=scatters,
            is_open=True,
            layout_settings=ws.SectionLayoutSettings(columns=3, rows=1),
        ),
        ws.Section(name="All settings at once", panels=[_parallel(contents)], is_open=True, layout_settings=one),
        ws.Section(name="Speed and memory", panels=speed, layout_settings=two, panel_settings=tokens),
    ]


def _curve(metric: str, contents: Contents, by: Varied | None = None) -> LinePlot:
    """A metric against tokens, mean and band of each group.

    The panel itself groups by ``by``, or by the only setting there is; W&B's panels take one. Where several settings
    group, the panel leaves it to the grouping of the runs.
    """
    import wandb_workspaces.reports.v2 as wr

    grouped = contents.grouped
    only = by or (grouped[0] if len(grouped) == 1 else None)
    together = " ".join(v.label for v in grouped)
    groupby: Any = None
    if only is not None:
        groupby = wr.Config(only.key)
    elif contents.only_seeds:
        groupby, together = wr.Metric("Group"), "sweep"
    what = only.label if only else together
    return wr.LinePlot(
        title=f"{metric} by {what}" if what else metric,
        x=TOKENS,
        y=[metric],
        title_x="tokens",
        groupby=groupby,
        groupby_aggfunc="mean" if what else None,
        groupby_rangefunc="minmax" if what else None,
        aggregate=True if what else None,
        max_runs_to_show=_limit(contents),
    )


def _scatter(x: str) -> ScatterPlot:
    import wandb_workspaces.reports.v2 as wr

    return wr.ScatterPlot(
        title=f"{_short(LOSS)} against {_short(x)}",
        x=wr.SummaryMetric(x),
        y=wr.SummaryMetric(LOSS),
        log_x=True if x == PARAMS else None,
    )


def _parallel(contents: Contents) -> ParallelCoordinatesPlot:
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.reports.v2.interface import ParallelCoordinatesPlotColumn as Column

    settings = [Column(wr.Config(v.key), display_name=v.label, log=True if v.log else None) for v in contents.varied]
    results = [Column(wr.SummaryMetric(metric), display_name=_short(metric)) for metric in (SPEED, MEMORY, LOSS)]
    return wr.ParallelCoordinatesPlot(title="Settings, speed, memory, loss", columns=[*settings, *results])


def _runs(contents: Contents) -> RunsetSettings:
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    groupby: list[Any] = [expr.Config(v.key) for v in contents.grouped]
    if contents.only_seeds:
        groupby = [expr.Metric("Group")]
    groups = ", ".join(map(_literal, contents.groups))
    one = len(contents.groups) == 1
    return ws.RunsetSettings(
        filters=f"Metric('Group') {f'== {groups}' if one else f'in [{groups}]'} and Metric('JobType') != 'comparison'",
        groupby=groupby,
        order=[expr.Ordering(expr.Summary(LOSS), ascending=True)],
        pinned_columns=[f"summary:{metric}" for metric in (LOSS, SPEED, MEMORY, PARAMS)],
    )


def _literal(text: str) -> str:
    """A Python literal of letters and digits alone. wandb-workspaces replaces ``=`` and ``<`` inside texts too, and
    takes a quotation mark for their end (0.4.13)."""
    return "'" + "".join(c if c.isascii() and c.isalnum() else f"\\U{ord(c):08x}" for c in text) + "'"


def _plain_name(name: str) -> str:
    """Names of workspaces hold no symbols: ``attention=mha,gqa`` is refused."""
    return "".join("-" if unicodedata.category(c) in ("So", "Sk", "Sm", "Sc", "Cs") else c for c in name)[:128]


def _short(metric: str) -> str:
    return metric.removeprefix("summary/")


def _limit(contents: Contents) -> int:
    """W&B shows ten runs in a panel unless told otherwise."""
    return max(10, min(contents.n_points, _MOST_RUNS))
