from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

CHOICES = {"attention": "gqa", "attention@ssm": "mamba2", "optim": "adamw", "norm": "rmsnorm"}
WANDB = {"project": "proj", "entity": None, "group": None, "mode": "auto"}


@pytest.fixture
def make_sweep(tmp_path: Path) -> Callable[..., Path]:
    """A sweep's directory, as far as the dashboard reads it."""

    def make(
        points: Sequence[str],
        *,
        name: str = "shapes",
        wandb: Sequence[dict[str, Any] | None] = (WANDB,),
        adjusted: Sequence[dict[str, int]] = ({},),
        started: int | None = None,
    ) -> Path:
        directory = tmp_path / "sweep"
        entries = []
        for num, words in enumerate(points):
            run_dir = directory / str(num)
            run_dir.mkdir(parents=True)
            logger = wandb[num % len(wandb)]
            config = {"seed": 1, "choice": CHOICES, "logger": {"jsonl": {}} | ({"wandb": logger} if logger else {})}
            if started is None or num < started:
                (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
                (run_dir / "run.json").write_text(json.dumps({"status": "ok", "choices": CHOICES}))
            entry = {"num": num, "dir": str(num), "identity": f"id{num}", "overrides": words.split(), "budget": None}
            entries.append({**entry, "adjusted": adjusted[num % len(adjusted)]})
        (directory / "sweep.json").write_text(json.dumps({"name": name, "sweeper": "grid", "points": entries}))
        return directory

    return make


@pytest.fixture
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a W&B account and with an empty home directory, which is returned."""
    home = tmp_path / "home"
    home.mkdir()
    for name in list(os.environ):
        if name.startswith("WANDB_") or name == "NETRC":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing may be asked, and nobody is there
    return home


class Server(ThreadingHTTPServer):
    """As much of W&B as saving a view asks for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.saved: list[dict[str, Any]] = []
        """The variables of each view that was saved."""
        self.refusal: str | None = None
        self.user = "me"
        self.silent = threading.Event()
        """Set: it takes questions and never answers."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.server.silent.is_set():
            threading.Event().wait(60)
        if "upsertView" not in asked["query"]:
            viewer = {"id": "user", "entity": self.server.user, "username": "someone", "email": "", "flags": "{}"}
            answer: dict[str, Any] = {"data": {"viewer": {**viewer, "teams": {"edges": []}}}}
        elif self.server.refusal:
            answer = {"data": None, "errors": [{"message": self.server.refusal, "path": ["upsertView"]}]}
        else:
            self.server.saved.append(asked["variables"])
            view = {"id": "view-1", "name": asked["variables"]["name"]}
            answer = {"data": {"upsertView": {"view": view, "inserted": True}}}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(no_account: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """W&B, with a user who is logged in."""
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    yield server
    if wandb := sys.modules.get("wandb"):
        wandb.teardown()  # it keeps the address for later tests otherwise
    server.shutdown()
    server.server_close()
