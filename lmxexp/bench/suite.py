"""All cases, one after the other, each with its peers."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from lmxexp import blas, device, on_cpu
from lmxexp.bench import measure, peers
from lmxexp.bench.cases import Case
from lmxexp.bench.measure import Contestant, Spread, Timed, reason
from lmxexp.bench.own import OwnStep
from lmxexp.bench.report import Peak, Report, Row
from lmxexp.train.precision import DTYPES

PEAK_SECONDS = 2.0
"""Spent on each type's matrix products: on a shared machine the first half second says little."""

Say = Callable[[str], None]


def say(line: str) -> None:
    """Progress, beside the results."""
    print(line, file=sys.stderr, flush=True)


def run(
    cases: Sequence[Case], peer_names: Sequence[str], *, n_rounds: int, n_steps: int, say: Say = say, **record: Any
) -> Report:
    """Measure; nothing that goes wrong in one case keeps the others from it.

    Args:
        peer_names: of `lmxexp.bench.peers.PACKAGES`; those that are not installed are noted.
        n_rounds: turns of each contestant.
        n_steps: of a turn.
        record: what the report is to remember of the surroundings.
    """
    report = Report(n_rounds=n_rounds, n_steps=n_steps, **record)
    found = [peer for peer in peer_names if peers.installed(peer)]
    for peer in peer_names:
        if peer not in found:
            report.remarks.append(f"{peer}: not installed")
    on_cpu.prepare()
    _measure_peaks(report, cases, say)
    for case in cases:
        say(case.name)
        report.rows += _Measured(case, found, report, say).rows()
        gc.collect()  # compiled steps hold themselves
        device.clear_cache()
    _measure_peaks(report, cases, say)
    for row in report.rows:
        if row.tokens_per_s is not None and row.flops_per_token is not None:
            row.mfu = row.flops_per_token * row.tokens_per_s / (report.peaks[_product_type(row.precision)].gflops * 1e9)
    return report


def _measure_peaks(report: Report, cases: Sequence[Case], say: Say) -> None:
    """Before the cases and after them, the better counts: other work on the machine only ever takes away."""
    for name in dict.fromkeys(_product_type(case.precision) for case in cases):
        say(f"matrix products in {name}")
        before = report.peaks[name].by_size if name in report.peaks else {}
        by_size = dict(before)
        for n_rows, gflops in blas.measure_by_size(DTYPES[name], budget_s=PEAK_SECONDS).items():
            by_size[str(n_rows)] = max(gflops, before.get(str(n_rows), 0.0))
        report.peaks[name] = Peak(by_size)


def _product_type(precision: str) -> str:
    """What products are computed in."""
    return "fp32" if precision == "fp32" else "bf16"


class _Measured:
    """One case."""

    def __init__(self, case: Case, peer_names: Sequence[str], report: Report, say: Say):
        self.case, self.peer_names, self.report, self.say = case, peer_names, report, say
        self.found: dict[str, Row] = {}
        self.ready: list[Contestant] = []

    def rows(self) -> list[Row]:
        own = self._own()
        if own is not None:
            timed = measure.rounds(self.ready, self.report.n_rounds, self.report.n_steps)
            of_own = timed[own.name]
            for name, of_one in timed.items():
                self._note(self.found[name], of_one, of_own if name != own.name else None, own)
        return list(self.found.values())

    def _own(self) -> OwnStep | None:
        """Warm up lmxexp's step and those of the peers; None if lmxexp's cannot be measured."""
        row = self._row(OwnStep.name)
        task = None
        try:
            start = time.perf_counter()
            own = OwnStep(self.case.cfg, self.case.vocab_size)
            built = time.perf_counter() - start
            settings = own.settings
            row.batch_size, row.seq_len, row.params = settings.batch_size, settings.seq_len, own.n_params()
            missing = peers.unsupported(self.case.cfg, own) if self.peer_names else None
            if self.peer_names and not missing:
                n_steps = peers.N_AGREEING_STEPS + self.report.n_rounds * self.report.n_steps
                task = peers.task_of(self.case.cfg, own, n_steps)
            losses = self._warm_up(own, row, built)
        except Exception as error:  # out of memory, or kinds that do not fit together: the other cases go on
            row.reason = reason(error)
            self.say(f"  {row.contestant}: {row.reason}")
            return None
        if missing:
            self.report.remarks.append(f"{self.case.name}: {missing}")
        if task is not None:
            for peer in self.peer_names:
                self._peer(peer, task, own, losses)
        return own

    def _peer(self, peer: str, task: peers.Task, own: OwnStep, losses: list[float]) -> None:
        try:
            makers = peers.makers(peer)
        except Exception as error:  # installed, and broken
            self._row(peer).reason = reason(error)
            return
        for name, make in makers.items():
            row = self._row(name)
            row.batch_size, row.seq_len = own.settings.batch_size, own.settings.seq_len
            try:
                start = time.perf_counter()
                contestant = make(task)
                built = time.perf_counter() - start
                row.params = contestant.n_params()
                peers.check_same_model(contestant, task)
                peers.check_same_steps(self._warm_up(contestant, row, built), losses, own.precision)
            except Exception as error:
                row.reason = reason(error)
                self.say(f"  {name}: {row.reason}")
                if self.ready and self.ready[-1].name == name:
                    self.ready.pop()

    def _warm_up(self, contestant: Contestant, row: Row, built: float) -> list[float]:
        """The first steps, with what is measured of them; their losses."""
        contestant.reset_peak()
        first = contestant.turn(1, time.perf_counter)
        rest = contestant.turn(peers.N_AGREEING_STEPS - 1, time.perf_counter)
        row.to_first_step_s, row.compile_s = built + first.seconds, first.seconds
        row.peak_gb, row.note = contestant.peak_gb(), contestant.note
        self.ready.append(contestant)
        self.say(f"  {row.contestant}: first step {first.seconds:.1f} s")
        return [*first.losses, *rest.losses][: peers.N_AGREEING_STEPS]

    def _row(self, contestant: str) -> Row:
        row = Row(case=self.case.name, contestant=contestant, precision=self.case.precision)
        self.found[contestant] = row
        return row

    def _note(self, row: Row, timed: Timed, of_own: Timed | None, own: OwnStep) -> None:
        if timed.failure is not None or not timed.seconds:
            row.reason = timed.failure or "no round was finished"
            row.to_first_step_s = row.compile_s = row.peak_gb = None
            return
        step = Spread(timed.seconds)
        row.step_s = step
        row.tokens_per_s = row.batch_size * row.seq_len / step.median
        row.compile_s = max(0.0, (row.compile_s or 0.0) - step.median)  # of the first step, what later ones do not take
        row.flops_per_token = own.flops_per_token
        if of_own is not None and of_own.failure is None:
            row.ratio = measure.ratios(timed.seconds, of_own.seconds)
        self.say(f"  {row.contestant}: {1e3 * step.median:.1f} ms a step")
