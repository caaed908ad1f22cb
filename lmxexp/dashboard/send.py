"""Saves a workspace at W&B, without a question and without waiting for longer than it says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmxexp.dashboard import view
from lmxexp.logger.wandb_start import logged_in, set_up, tear_down, wanted_mode, within

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

    from lmxexp.dashboard.contents import Contents

FILE_NAME = "wandb_workspace.json"
_ABANDON_SECONDS = 5.0


@dataclass(frozen=True)
class Saved:
    """What became of a workspace."""

    file: Path
    url: str | None
    """None: it was not sent."""
    problem: str = ""
    """Why not."""
    failed: bool = False
    """Whether W&B was asked, and the answer was none or a refusal."""


def save(contents: Contents, directory: Path, timeout: float) -> Saved:
    """Write the view into the sweep's directory, and save it at W&B where there is a key.

    A second time the same workspace is saved again, under the same address.

    Args:
        contents: of the sweep.
        directory: of the sweep.
        timeout: seconds for all that W&B is asked.
    """
    file = directory / FILE_NAME
    earlier = _earlier(file, contents)
    _write(file, contents, view.build(contents, contents.entity or ""), earlier)
    if (mode := wanted_mode("auto")) in ("offline", "disabled"):
        return Saved(file, None, f"WANDB_MODE={mode}: unset it")
    set_up()
    if not logged_in():
        return Saved(file, None, "not logged in: `wandb login`")

    done: list[tuple[Workspace, str]] = []
    try:
        answered = within(timeout, lambda: done.append(_upload(contents, earlier)))
        problem = f"no answer within {timeout:g} s"
    except Exception as error:
        answered, problem = False, " ".join(str(error).split()) or type(error).__name__
    if not answered or not done:
        within(_ABANDON_SECONDS, tear_down)
        return Saved(file, None, problem, failed=True)
    workspace, url = done[0]
    address = {"name": workspace._internal_name, "id": workspace._internal_id, "url": url}
    _write(file, contents, workspace, {"entity": workspace.entity, "view": address})
    return Saved(file, url)


def _upload(contents: Contents, earlier: dict[str, Any]) -> tuple[Workspace, str]:
    import wandb

    entity = contents.entity or wandb.Api().default_entity
    if not entity:
        raise ValueError("the account has no default entity: name one by --entity")
    workspace = view.build(contents, entity)
    if earlier.get("view") and earlier["entity"] == entity:
        workspace._internal_name, workspace._internal_id = earlier["view"]["name"], earlier["view"]["id"]
    workspace.save()
    return workspace, workspace.url


def _earlier(file: Path, contents: Contents) -> dict[str, Any]:
    """Where the workspace was saved before, if that is where it belongs."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        same = content["project"] == contents.project and contents.entity in (None, content["entity"])
        return {"entity": content["entity"], "view": content["view"]} if same and content["view"] else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write(file: Path, contents: Contents, workspace: Workspace, saved: dict[str, Any]) -> None:
    model = workspace._to_model()
    content = {
        "entity": saved.get("entity") or contents.entity,
        "project": contents.project,
        "displayName": workspace.name,
        "view": saved.get("view"),
        "spec": model.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
    }
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(file)
