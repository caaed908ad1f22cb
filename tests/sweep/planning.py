"""What a sweeper has in its hands when it plans, without a sweep."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from lmxexp.cli.composer import Composer
from lmxexp.compose import CONFIG_NAME, started
from lmxexp.sweep import points
from lmxexp.sweep.ledger import Ledger
from lmxexp.sweep.planner import Planned, Planner


@dataclass
class Sweep:
    """Hydra, started for a sweep."""

    loader: ConfigLoader
    master: DictConfig
    """The sweep's own configuration."""
    directory: Path

    @property
    def composer(self) -> Composer:
        return Composer(partial(self.loader.load_sweep_config, self.master))

    def planner(self) -> tuple[Planner, Ledger]:
        book = Ledger(self.directory)
        return Planner(self.composer, book, "grid"), book

    def plan(self, *typed: str) -> list[Planned]:
        """The points that a command line comes to; they are written down."""
        planner, book = self.planner()
        plan = planner.plan(points.grid(parsed(*typed)))
        self.directory.mkdir(parents=True, exist_ok=True)
        book.write({"match": planner.match, "tune": planner.tune})
        return plan


@contextmanager
def sweep(directory: Path, *hydras: str, config_dir: Path | None = None) -> Iterator[Sweep]:
    """A sweep in ``directory``, with these overrides of Hydra's own settings."""
    with started(config_dir) as hydra:
        typed = [f"hydra.sweep.dir={directory}", *hydras]
        master = hydra.compose_config(CONFIG_NAME, typed, RunMode.MULTIRUN, from_shell=False)
        yield Sweep(hydra.config_loader, master, directory)


def parsed(*typed: str):
    return OverridesParser.create().parse_overrides(list(typed))
