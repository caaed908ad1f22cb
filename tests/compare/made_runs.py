"""Runs and sweeps that were never trained: directories as `lmxexp.run` and a sweep leave them, written in milliseconds.

The losses follow ``loss(t) = final + 2 (t^-0.5 - T^-0.5) / T^-0.5 / 10`` of the tokens ``t``, so that their slope
against ``log t`` at the end is known: -0.1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lmxexp.compare.read import Run

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_CHOICES = {
    "size": "tiny", "attention": "gqa", "norm": "rmsnorm", "position": "rope", "ffn": "swiglu", "block": "pre_norm",
    "model": "llama", "data": "python_stdlib", "tokenizer": "byte", "loss": "cross_entropy", "optim": "adamw",
    "schedule": "cosine", "train": "default", "debug": "none", "callback": "evaluate+throughput+memory",
    "logger": "console+jsonl",
}  # fmt: skip
_ATTENTION: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa": {"n_kv_heads": 2},
    "mqa": {"n_kv_heads": 1},
    "sliding": {"reach": {"window": 64}},
}
END_SLOPE = -0.1
"""Of ``eval/loss`` against the logarithm of tokens, at the end of a made run."""


def made_config(
    choices: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    seed: int = 1,
    steps: int = 200,
) -> dict[str, Any]:
    """A resolved configuration, with the copies that interpolations leave.

    Args:
        choices: kinds that are not the defaults, ``{"attention": "mha"}``.
        settings: dotted keys that are not the defaults, ``{"model.d_ff": 352, "optim.learning_rate": 0.003}``.
    """
    chosen, settings = _CHOICES | dict(choices or {}), dict(settings or {})
    sizes = {"d_model": 128, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "head_dim": None, "d_ff": None}
    sizes |= {"d_model": 256} if chosen["size"] == "10m" else {}
    sizes |= {k.removeprefix("model."): v for k, v in settings.items() if k.removeprefix("model.") in sizes}
    kind = chosen["attention"]
    attention = {"_target_": f"lmxexp.model.attention.{kind}", "_partial_": True, "n_heads": sizes["n_heads"]}
    attention |= _ATTENTION.get(kind, {})
    if "n_kv_heads" in attention and kind == "gqa":
        attention["n_kv_heads"] = sizes["n_kv_heads"]
    norm = {"_target_": f"lmxexp.model.norm.{chosen['norm']}", "_partial_": True, "eps": 1e-5}
    ffn = {"_target_": f"lmxexp.model.ffn.{chosen['ffn']}", "_partial_": True, "d_ff": sizes["d_ff"], "bias": False}
    config: dict[str, Any] = {
        "seed": seed,
        "name": f"{chosen['model']}-{kind}",
        "tags": [],
        "resume": None,
        "choice": chosen,
        "model": {
            **sizes,
            "attention": attention,
            "norm": norm,
            "ffn": ffn,
            "net": {
                "_target_": "lmxexp.model.language_model.LanguageModel",
                "d_model": sizes["d_model"],
                "n_layers": sizes["n_layers"],
                "norm": dict(norm),
                "blocks": {"layer": {"mixer": dict(attention), "ffn": dict(ffn)}},
                "pattern": {"first": [], "repeat": ["layer"], "last": []},
            },
        },
        "data": {
            "_target_": f"lmxexp.data.{chosen['data']}", "val_fraction": 0.009, "seq_len": 128, "batch_size": 16,
            "seed": seed, "max_eval_tokens": None, "cache_dir": "~/.cache/lmxexp",
        },
        "tokenizer": {"_target_": f"lmxexp.tokenizer.{chosen['tokenizer']}", "_partial_": True},
        "loss": {"_target_": "lmxexp.loss.cross_entropy.CrossEntropy", "z_loss": 0.0},
        "optim": {
            "_target_": f"lmxexp.optim.{chosen['optim']}", "learning_rate": 0.001, "betas": [0.9, 0.95], "eps": 1e-8,
            "weight_decay": 0.1,
        },
        "schedule": {"_target_": f"lmxexp.schedule.{chosen['schedule']}", "steps": steps, "final": 0.1},
        "train": {
            "_target_": "lmxexp.train.settings.TrainSettings", "steps": steps, "batch_size": 16, "seq_len": 128,
            "precision": "auto", "log_every": 10, "eval_every": 50,
        },
        "callback": {"evaluate": {"_target_": "lmxexp.callback.evaluate.Evaluate", "every": 50}},
        "logger": {"jsonl": {"_target_": "lmxexp.logger.jsonl.Jsonl"}},
        "debug": {"traceback": False},
    }  # fmt: skip
    for key, value in settings.items():
        *path, last = key.split(".")
        node = config
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return config


def made_lines(
    loss: float, *, steps: int = 200, log_every: int = 10, eval_every: int = 50, tokens_a_step: int = 2048,
    tokens_per_s: float = 10_000.0, peak_gb: float = 0.5, slope: float = END_SLOPE,
) -> list[dict[str, Any]]:  # fmt: skip
    """What ``metrics.jsonl`` of a run holds whose last ``eval/loss`` is ``loss``."""
    last = steps * tokens_a_step
    lines = []
    for step in range(log_every, steps + 1, log_every):
        tokens = step * tokens_a_step
        value = loss - 2 * slope * ((tokens / last) ** -0.5 - 1)
        line = {
            "step": step, "tokens": tokens, "train/loss": value + 0.01 * math.sin(step), "train/grad_norm": 1.0,
            "train/lr": 1e-3, "perf/tokens_per_s": tokens_per_s, "perf/step_ms": tokens_a_step / tokens_per_s * 1e3,
            "perf/mfu": 0.3, "mem/peak_gb": peak_gb,
        }  # fmt: skip
        if step % eval_every == 0 or step == steps:
            line |= {"eval/loss": value, "eval/ppl": math.exp(value), "eval/accuracy": 1 / (1 + value)}
            line |= {"eval/bpb": value / math.log(2)}
        lines.append(line)
    return lines


def made_record(config: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A ``run.json``."""
    record = {
        "status": "ok",
        "run_id": "0123456789ab",
        "choices": dict(config["choice"]),
        "seeds": {"seed": config["seed"], "data": config["data"].get("seed")},
        "params": 800_000,
        "flops_per_token": 4_800_000,
        "state_elements": 16_384,
        "precision": "fp32",
        "data": {"fingerprint": "f" * 16, "eval_bytes": 100_000, "eval_targets": 100_000},
        "started": "2026-01-31T12:00:00+0000",
        "git": None,
        "device": {"name": "a CPU", "backend": "cpu"},
    }
    return record | changes


def made_summary(lines: Sequence[Mapping[str, Any]], **changes: Any) -> dict[str, Any]:
    """A ``summary.json``: the last value of each metric."""
    last: dict[str, Any] = {}
    for line in lines:
        last |= line
    evaluations = [line["eval/loss"] for line in lines if "eval/loss" in line]
    kept = {k: v for k, v in last.items() if k.startswith(("eval/", "train/loss", "perf/tokens", "mem/"))}
    best = {"best/eval/loss": min(evaluations, default=None)}
    head = {"status": "ok", "error": None, "step": last.get("step", 0), "tokens": last.get("tokens", 0)}
    return head | kept | best | {"seconds": 12.0} | changes


def make_run(
    path: Path, choices: Mapping[str, str] | None = None, settings: Mapping[str, Any] | None = None, *, seed: int = 1,
    loss: float = 3.0, steps: int = 200, status: str = "ok", error: str | None = None,
    record: Mapping[str, Any] | None = None, summary: Mapping[str, Any] | None = None, outcome: bool = False,
    **lines: Any,
) -> Path:  # fmt: skip
    """Write a run's directory.

    Args:
        loss: the last ``eval/loss``.
        record, summary: what is otherwise in ``run.json`` and ``summary.json``: ``{"params": 810_112}``.
        outcome: write ``outcome.json``, as of a sweep's point.
        lines: of `made_lines`.
    """
    config = made_config(choices, settings, seed=seed, steps=steps)
    logged = made_lines(loss, steps=steps, **lines)
    path.mkdir(parents=True, exist_ok=True)
    head = {"status": status, "error": error}
    (path / "config.yaml").write_text(yaml.dump(config, Dumper=_DUMPER, sort_keys=False))
    (path / "run.json").write_text(json.dumps(made_record(config, **head) | dict(record or {}), indent=1))
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in logged))
    if status != "running":
        (path / "summary.json").write_text(json.dumps(made_summary(logged, **head) | dict(summary or {}), indent=1))
    if outcome:
        _write_outcome(path, status, error, loss)
    return path


def make_sweep(
    path: Path, points: Sequence[Mapping[str, Any]], *, match: Mapping[str, Any] | None = None,
    tune: Mapping[str, Any] | None = None, sweeper: str = "grid",
) -> Path:  # fmt: skip
    """Write a sweep's directory.

    Args:
        points: arguments of `make_run` each, ``choices``, ``settings`` and ``seed`` being its overrides; also
            ``adjusted`` (what ``match`` solved for) and ``budget``; ``status="waiting"``: not started;
            ``early=True``: failed before ``run.json`` was written.
    """
    entries = []
    for num, point in enumerate(points):
        arguments = dict(point)
        adjusted, budget = arguments.pop("adjusted", {}), arguments.pop("budget", None)
        early = arguments.pop("early", False)
        choices, settings = arguments.get("choices") or {}, arguments.get("settings") or {}
        words = [*(f"{k}={v}" for k, v in choices.items()), *(f"{k}={v}" for k, v in settings.items())]
        words += [f"seed={arguments.get('seed', 1)}"]
        directory = f"{num}_{','.join(words)}"
        entries.append(
            {"num": num, "dir": directory, "identity": f"{num:016x}", "overrides": words, "adjusted": adjusted,
             "budget": budget}
        )  # fmt: skip
        if early:
            (path / directory).mkdir(parents=True)
            _write_outcome(path / directory, arguments["status"], arguments.get("error"), math.inf)
        elif arguments.get("status") != "waiting":
            make_run(path / directory, outcome=True, **(arguments | {"settings": {**settings, **adjusted}}))
    content = {
        "name": path.name, "command": "python -m lmxexp -m", "sweeper": sweeper, "created": "2026-01-31T12:00:00+0000",
        "match": match, "tune": tune, "points": entries,
    }  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    (path / "sweep.json").write_text(json.dumps(content, indent=1))
    return path


def memory_run(
    choices: Mapping[str, str] | None = None, settings: Mapping[str, Any] | None = None, *, seed: int = 1,
    loss: float = 3.0, status: str = "ok", error: str | None = None, record: Mapping[str, Any] | None = None,
    summary: Mapping[str, Any] | None = None, config: dict[str, Any] | None = None, **others: Any,
) -> Run:  # fmt: skip
    """A `Run` that is on no disk, without lines. ``config`` saves making one, where hundreds are needed."""
    config = made_config(choices, settings, seed=seed) if config is None else config
    numbers = {"step": 200, "tokens": 409_600, "eval/loss": loss, "perf/tokens_per_s": 1e4, "mem/peak_gb": 0.5}
    return Run(
        Path(f"made/{'_'.join((choices or {}).values())}_{seed}"),
        config,
        made_record(config, status=status, error=error) | dict(record or {}),
        {"status": status, "error": error} | numbers | dict(summary or {}),
        status,
        error,
        **others,
    )


def _write_outcome(path: Path, status: str, error: str | None, loss: float) -> None:
    score = loss if status == "ok" else "inf"
    content = {"identity": "0" * 16, "status": status, "score": score, "error": error, "seconds": 12.0, "attempt": 1}
    (path / "outcome.json").write_text(json.dumps(content))


def make_many(path: Path, n_runs: int, n_lines: int, *, n_seeds: int = 5) -> Path:
    """Write a sweep of many runs over learning rates and attention kinds, each with ``n_lines`` logged steps.

    The lines of all are those of one run, because making them is what takes time; all but the losses at the end are
    the same.
    """
    kinds = sorted(_ATTENTION)
    lines = made_lines(3.0, steps=n_lines, log_every=1, eval_every=max(1, n_lines // 20))
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    points = []
    for i in range(n_runs):
        arm, seed = divmod(i, n_seeds)
        choices = {"attention": kinds[arm % len(kinds)]}
        settings = {"optim.learning_rate": round(1e-3 * 1.1 ** (arm // len(kinds)), 8)}
        loss = 3 + 0.01 * math.sin(arm) + 0.002 * math.sin(i)
        points.append({"choices": choices, "settings": settings, "seed": seed, "loss": loss, "steps": 10})
    make_sweep(path, points)
    for directory in path.iterdir():
        if directory.is_dir():
            summary = json.loads((directory / "summary.json").read_text())
            (directory / "metrics.jsonl").write_text(text)
            (directory / "summary.json").write_text(
                json.dumps(made_summary(lines, **{"eval/loss": summary["eval/loss"]}))
            )
    return path
