"""A sweep's directory as ``experiment=card`` leaves it, with figures that are known."""

import json
from pathlib import Path

import yaml

SPEEDS = {"train_tokens_per_s": 1000.0, "decode_tokens_per_s": 100.0, "state_bytes": 64.0, "train_peak_gb": 0.25}


class Sweep:
    """``sweep.json`` and its points, written one by one."""

    def __init__(self, path: Path):
        self.path = path
        self.points = []
        self.tune = None
        path.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        mixer,
        task,
        value,
        *,
        seed=1,
        status="ok",
        error=None,
        speeds=None,
        config=None,
        started="1",
        device=None,
        steps=300,
    ):
        """A point. ``value`` is its loss or accuracy, by the task; ``speeds`` metric to length to value."""
        number = len(self.points)
        directory = self.path / f"{number}_attention={mixer},seed={seed},task={task}"
        directory.mkdir()
        overrides = [f"attention={mixer}", f"seed={seed}", f"task={task}"]
        self.points.append({"num": number, "dir": directory.name, "overrides": overrides, "adjusted": {}})
        self._write()
        (directory / "outcome.json").write_text(json.dumps({"status": status, "error": error}))
        if status == "before":  # failed before there was a run
            (directory / "outcome.json").write_text(json.dumps({"status": "failed", "error": error}))
            return directory
        choices = {"attention": mixer, "task": task, "data": task}
        content = {"seed": seed, "choice": choices, "data": {"seed": seed, "task": task}, **(config or {})}
        (directory / "config.yaml").write_text(yaml.safe_dump(content))
        record = {"status": status, "choices": choices, "seeds": {"seed": seed, "data": seed}, "started": started}
        record |= {
            "params": 1000 + len(mixer),
            "data": {"fingerprint": task, "eval_bytes": 9 if task == "lm" else None},
            "device": device or {},
        }
        (directory / "run.json").write_text(json.dumps(record))
        name = "eval/loss" if task == "lm" else "eval/accuracy"
        (directory / "summary.json").write_text(
            json.dumps({"status": status, "step": steps, "eval/loss": 5.0, name: value})
        )
        last = {f"speed/{m}/{n}": v for m, at in (speeds or {}).items() for n, v in at.items()}
        lines = [{"step": 1, "eval/loss": 6.0}, {"step": 2, **last}]
        (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return directory

    def _write(self):
        name = self.path.name
        content = {"name": name, "command": f"python -m lmxexp -m of {name}", "tune": self.tune, "points": self.points}
        (self.path / "sweep.json").write_text(json.dumps(content))


def measured(factor=1.0, lengths=(64, 1024)):
    """Every metric at every length; decreasing with the length, the state and the peak increasing."""
    return {
        name: {n: value * factor * (64 / n if name.endswith("per_s") else n / 64) for n in lengths}
        for name, value in SPEEDS.items()
    }
