"""Points of a sweep that differ only in numbers, trained in one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from lmxexp.cli.errors import refuse
from lmxexp.population.say import say
from lmxexp.sweep import worker
from lmxexp.sweep.prepare import resolved
from lmxexp.sweep.subprocess_launcher import SubprocessLauncher, failed


class PopulationLauncher(Launcher):
    """Trains points together whose shapes and structure agree and whose differences are numbers: seeds, learning rate,
    weight decay, … (`lmxexp.population.grouping`). All others run one after the other in this process, as do all on a
    CPU, where it does not pay.

    Each point keeps its directory, log, checkpoints, W&B run and score, as if it had run alone.

    Args:
        max_members: points in one step.
        force: on a CPU too.
        n_jobs: processes at a time, over which points that go together are shared out equally, and of which each has
            one of several NVIDIA GPUs; 1: all in this process.
    """

    config: DictConfig
    hydra_context: HydraContext
    task_function: TaskFunction

    def __init__(self, max_members: int = 32, force: bool = False, n_jobs: int = 1):
        if max_members < 1:
            refuse(f"hydra.launcher.max_members={max_members} must be at least 1")
        self.max_members, self.force = max_members, force
        self._processes = SubprocessLauncher(n_jobs)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        jobs = [self._compose(initial_job_idx + i, list(line)) for i, line in enumerate(job_overrides)]
        groups = self._groups(jobs)
        if self._processes.n_jobs == 1:
            of_groups = [self.run_group(group) for group in groups]
        else:
            of_groups = self._processes.side_by_side(self._ask, groups)
        returned = {
            job.num: result
            for group, results in zip(groups, of_groups, strict=True)
            for job, result in zip(group, results, strict=True)
        }
        return [returned[job.num] for job in jobs]

    def run_group(self, group: Sequence[_Job]) -> list[JobReturn]:
        """What the jobs come to, in this process."""
        if len(group) > 1:
            self._together(group)
        returned = []
        for job in group:
            returned.append(job.returned or self._alone(job))
            if job.stopped_by:  # by a signal that is meant for the whole sweep: no other group begins
                raise SystemExit(job.stopped_by)
        return returned

    def _ask(self, group: Sequence[_Job]) -> list[JobReturn]:
        """What they come to, in a process of their own."""
        numbers, configs = [job.num for job in group], [job.cfg for job in group]
        answer = self._processes.ask(
            group[0].directory,
            _group_in_process,
            self.hydra_context.callbacks,
            self.task_function,
            self.config,
            numbers,
            configs,
        )
        return [failed(cfg, answer) for cfg in configs] if isinstance(answer, Exception) else answer

    def _compose(self, num: int, line: list[str]) -> _Job:
        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, line)
        with open_dict(cfg):
            cfg.hydra.job.id, cfg.hydra.job.num = num, num
        return _Job(num, cfg)

    def _groups(self, jobs: Sequence[_Job]) -> list[list[_Job]]:
        """Jobs that go together; each by itself where nothing else does."""
        from lmxexp import device
        from lmxexp.population.grouping import groups

        if len(jobs) < 2:
            return [[job] for job in jobs]
        if not hasattr(self.task_function, "steps"):
            return [[job] for job in jobs]
        if not (self.force or device.is_gpu()):
            say(
                "on a CPU points are no faster together: they run one after the other, unless hydra.launcher.force=true"
            )
            return [[job] for job in jobs]
        configs = [job.resolved() for job in jobs]
        if any((config.get("train") or {}).get("profile") for config in configs):
            refuse(
                "train.profile=true: hydra/launcher=population trains many points in one step, of which the parts of "
                "one point's step tell nothing; profile a point by itself, without --multirun"
            )
        found = groups(configs)
        if singles := [i for group in found if len(group) == 1 for i in group]:
            names = ", ".join(" ".join(jobs[i].overrides) for i in singles)
            say(f"one after the other, as no other point has their shapes and structure: {names}")
        return [
            [jobs[i] for i in group[start : start + size]]
            for group in found
            for size in [min(self.max_members, -(-len(group) // self._processes.n_jobs))]
            for start in range(0, len(group), size)
        ]

    def _alone(self, job: _Job) -> JobReturn:
        returned = run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=job.cfg,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return returned

    def _together(self, jobs: Sequence[_Job]) -> None:
        """Train jobs in one step as far as they are at the same one; what they came to is in them."""
        from lmxexp.population.train import align, together

        align([job.directory / "checkpoints" for job in jobs])
        for job in jobs:
            job.begin(self.task_function, self.hydra_context)
        waiting = [job for job in jobs if job.member.trainer is not None]
        at: dict[int, list[_Job]] = {}
        for job in waiting:
            at.setdefault(job.member.trainer.step, []).append(job)
        for group in at.values():
            limit = group[0].member.trainer.memory_limit_gb
            reason = together([job.member for job in group], limit) if len(group) > 1 else None
            if reason is not None:
                names = ", ".join(" ".join(job.overrides) for job in group if not job.member.ended)
                say(f"one after the other, as no step fits all ({reason}): {names}")
            for job in group:
                if not job.member.ended:
                    job.member.alone()
        for job in jobs:
            job.end(self.hydra_context)


def _group_in_process(
    callbacks: Any, task_function: TaskFunction, config: DictConfig, numbers: list[int], configs: list[DictConfig]
) -> list[JobReturn]:
    launcher = PopulationLauncher()
    launcher.setup(hydra_context=worker.context(callbacks), task_function=task_function, config=config)
    return launcher.run_group([_Job(*job) for job in zip(numbers, configs, strict=True)])


@dataclass(eq=False)
class _Job:
    """What Hydra's `run_job` does, in two parts: until the first step, and after the last."""

    num: int
    cfg: DictConfig
    returned: JobReturn | None = None
    stopped_by: int = 0

    @property
    def overrides(self) -> list[str]:
        return list(OmegaConf.select(self.cfg, "sweep.overrides") or self.cfg.hydra.overrides.task)

    @property
    def directory(self) -> Path:
        return Path(str(self.cfg.hydra.sweep.dir)).absolute() / str(self.cfg.hydra.sweep.subdir)

    def resolved(self) -> dict[str, Any]:
        """The configuration in plain containers, without Hydra's node."""
        HydraConfig.instance().set_config(self.cfg)  # for ${hydra:…}
        return resolved(self._without_hydra())

    def _without_hydra(self) -> DictConfig:
        return OmegaConf.masked_copy(self.cfg, [str(k) for k in self.cfg if k != "hydra"])

    def begin(self, task_function: Any, context: HydraContext) -> None:
        from lmxexp.population.train import Member

        hydra = HydraConfig.instance()
        hydra.set_config(self.cfg)
        directory = self.directory
        with read_write(self.cfg.hydra.runtime), open_dict(self.cfg.hydra.runtime):
            self.cfg.hydra.runtime.output_dir = str(directory)
        hydra.set_config(self.cfg)
        directory.mkdir(parents=True, exist_ok=True)
        configure_log(self.cfg.hydra.job_logging, self.cfg.hydra.verbose)
        context.callbacks.on_job_start(config=self.cfg, task_function=task_function)
        steps, output = task_function.steps(self._without_hydra(), directory)
        self.member: Any = Member(steps, output)
        self.member.begin()

    def end(self, context: HydraContext) -> None:
        outcome = self.member.result
        overrides: Any = OmegaConf.to_container(self.cfg.hydra.overrides.task)
        self.returned = JobReturn(overrides=overrides, cfg=self.cfg, hydra_cfg=self.cfg, status=JobStatus.COMPLETED)
        self.returned.return_value = outcome.score
        if outcome.status == "stopped":
            self.stopped_by = outcome.exit_code
        context.callbacks.on_job_end(config=self.cfg, job_return=self.returned)
