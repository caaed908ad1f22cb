"""What `mlx.launch` tells a process of the others, in its environment. Imports no MLX."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Launch:
    """A process among those that train one model."""

    rank: int
    size: int
    backend: str
    """nccl, jaccl, ring or mpi."""
    main_host: str
    """An address of rank 0 that the others reach; empty where only rank 0 itself knows one."""


def launched(env: Mapping[str, str] = os.environ) -> Launch | None:
    """How this process was launched; None: by itself."""
    for rank, size in (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE")):
        if "MLX_RANK" not in env and rank in env:
            return _several(int(env[rank]), int(env.get(size, "1")), "mpi", "")
    if "MLX_RANK" not in env:
        return None
    rank = int(env["MLX_RANK"])
    if "NCCL_HOST_IP" in env:
        return _several(rank, int(env["MLX_WORLD_SIZE"]), "nccl", env["NCCL_HOST_IP"])
    if "MLX_JACCL_COORDINATOR" in env:
        devices = json.loads(Path(env["MLX_IBV_DEVICES"]).read_text())
        return _several(rank, len(devices), "jaccl", env["MLX_JACCL_COORDINATOR"].rpartition(":")[0])
    if "MLX_HOSTFILE" in env:
        # With one host mlx.launch writes an empty file.
        hosts = json.loads(Path(env["MLX_HOSTFILE"]).read_text().strip() or "[]")
        return _several(rank, len(hosts), "ring", hosts[0][0].rpartition(":")[0]) if hosts else None
    return None


def _several(rank: int, size: int, backend: str, main_host: str) -> Launch | None:
    return Launch(rank, size, backend, main_host) if size > 1 else None
