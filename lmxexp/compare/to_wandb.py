"""The table of a comparison, at W&B beside the sweep's runs."""

from __future__ import annotations

import hashlib
import math
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmxexp.logger.wandb_start import NAME_LENGTH, Mode, logged_in, set_up, tear_down, wanted_mode, within

if TYPE_CHECKING:
    from lmxexp.compare.comparison import Comparison

JOB_TYPE = "comparison"
"""Of the run that holds the table; the workspace of `lmxexp.dashboard` leaves it out."""

_INIT_SECONDS, _FINISH_SECONDS, _ABANDON_SECONDS = 10.0, 20.0, 5.0


def send_beside_runs(comparison: Comparison) -> str | None:
    """`send`, to where the compared runs are: of one sweep, logged to one project, and online.

    Returns:
        The run's address; None: nothing was sent.
    """
    if len(comparison.sweeps) != 1:
        return None
    nodes = [(run.config.get("logger") or {}).get("wandb") for run in comparison.runs]
    places: set[Any] = {
        (n.get("project"), n.get("entity"), n.get("group"), n.get("mode")) for n in nodes if isinstance(n, dict)
    }
    if len(places) != 1:
        return None
    project, entity, group, mode = places.pop()
    return send(comparison, group or comparison.sweeps[0].name, str(project), entity, mode=mode)


def send(
    comparison: Comparison | Sequence[Mapping[str, Any]],
    sweep_name: str,
    project: str,
    entity: str | None = None,
    *,
    mode: Mode = "auto",
    directory: Path | None = None,
) -> str | None:
    """Log the rows as a table, in a run ``comparison`` of the sweep's group.

    Only where that needs no question: with a login, and unless ``WANDB_MODE`` says offline or disabled. What goes wrong
    is one line of warning. The comparison of a sweep that is compared again is logged to the same run.

    Args:
        comparison: or its rows, as `lmxexp.compare.files.records` makes them.
        sweep_name: the group of the sweep's runs.
        project, entity: where these are; None: the account's default entity.
        mode: as ``logger.wandb.mode``; offline writes a run for ``wandb sync`` into ``directory``.
        directory: where W&B keeps its files; None: nowhere, once they are sent.

    Returns:
        The run's address; None: nothing was sent.
    """
    mode = wanted_mode(mode)
    if mode == "disabled" or (mode == "offline" and directory is None):
        return None
    if isinstance(comparison, Sequence):
        rows = comparison
    else:
        from lmxexp.compare.files import records

        rows = records(comparison)
    columns, data = table(rows)
    url: list[str | None] = []
    kept = directory or Path(tempfile.mkdtemp(prefix="lmxexp-"))
    try:
        set_up()
        if mode != "offline" and not logged_in():
            return None

        def log() -> None:
            url.append(_log(columns, data, sweep_name, project, entity, mode, kept))

        if within(_INIT_SECONDS + _FINISH_SECONDS, log):
            return url[0]
        problem = f"no answer within {_INIT_SECONDS + _FINISH_SECONDS:g} s"
    except Exception as error:
        problem = " ".join(str(error).split()) or type(error).__name__
    finally:
        if directory is None:
            shutil.rmtree(kept, ignore_errors=True)
    within(_ABANDON_SECONDS, tear_down)
    print(f"W&B: the comparison was not sent ({problem})", file=sys.stderr, flush=True)
    return None


def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns, in the order of their first appearance, and the values; None where a row has none.

    What is no number, text or truth is text; so is an infinity or NaN, which W&B's tables do not hold.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return columns, [[_cell(row.get(column)) for column in columns] for row in rows]


def _log(
    columns: list[str],
    data: list[list[Any]],
    sweep_name: str,
    project: str,
    entity: str | None,
    mode: str,
    directory: Path,
) -> str | None:
    import wandb

    def start(run_id: str | None) -> Any:
        return wandb.init(
            mode="offline" if mode == "offline" else "online",
            project=project,
            entity=entity,
            group=sweep_name[:NAME_LENGTH],
            name="comparison",
            job_type=JOB_TYPE,
            id=run_id,
            resume="allow" if run_id else None,
            dir=directory,
            reinit="create_new",  # a run that goes on in this process is left alone
            settings=wandb.Settings(
                silent=True,
                console="off",
                symlink=False,
                use_dot_wandb=False,
                init_timeout=_INIT_SECONDS,
                finish_timeout=_FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )

    words = "\n".join((entity or "", project, sweep_name))
    try:
        run = start(f"cmp{hashlib.sha256(words.encode()).hexdigest()[:12]}")
    except Exception as error:
        if "deleted" not in str(error):
            raise
        run = start(None)  # W&B gives the id of a deleted run to no other
    content: dict[str, Any] = {"columns": columns, "data": data}
    run.log({"comparison": wandb.Table(**content, allow_mixed_types=True)})
    run.finish(exit_code=0)
    return None if mode == "offline" else run.url


def _cell(value: Any) -> Any:
    with suppress(AttributeError, ValueError):
        value = value.item()  # of NumPy
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)
