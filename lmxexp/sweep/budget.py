"""What a configuration will use of a budget, found without training it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from lmxexp.cli.errors import refuse
from lmxexp.interfaces import Stage

if TYPE_CHECKING:
    from lmxexp.model.language_model import LanguageModel

_NOT_OF_THE_TEXT = ("seed", "seq_len", "batch_size", "max_eval_tokens")
"""Settings of data that change no vocabulary."""

_OF_THE_SWEEP = ("match", "tune", "sweep", "hydra")
_NOT_OF_A_STEP = ("seed", "name", "tags", "resume", "debug", "choice", "callback", "logger", *_OF_THE_SWEEP)


@dataclass
class Budgets:
    """Measures configurations. Vocabularies that are known only once the data is read are remembered.

    Args:
        kind: ``params``, trainable ones; ``flops``, of the whole training, forward and backward; ``tokens``, of the
            whole training; ``time``, seconds of all training steps, measured here; ``memory``, peak in units of 1e9
            bytes, estimated. As in `lmxexp.compare.read.Run.budget`.
    """

    kind: str
    _vocabularies: dict[str, int] = field(default_factory=dict)
    _seconds: dict[tuple[str, int, int], float] = field(default_factory=dict)
    """Of a step, by configuration and the sizes of its batch: each is measured once."""

    def of(self, cfg: DictConfig, *, keep: bool = True) -> float:
        """The budget that a run of ``cfg`` will use.

        Args:
            keep: whether the configuration is left as it is; without, interpolations in it may be resolved.

        Raises:
            ConfigError: a design that cannot be built, or of which the memory cannot be estimated.
        """
        if self.kind == "params":
            return self._model(cfg, keep).n_params()
        if self.kind == "memory":
            return self._peak_gb(cfg)
        return self.by_steps(cfg, keep=keep)(cfg.train.steps)

    def by_steps(self, cfg: DictConfig, *, keep: bool = True) -> Callable[[int], float]:
        """Tokens, FLOPs or seconds of a run of ``cfg``, by its number of steps.

        Args:
            keep: as of `of`.
        """
        from lmxexp.ramp.build import ramp_of
        from lmxexp.ramp.stages import steps_of

        cost = self._cost_of_step(cfg, keep)

        def used(steps: int) -> float:
            at = copy.deepcopy(cfg)  # instantiate resolves interpolations in place
            at.train.steps = steps
            stages = ramp_of(at).stages
            return sum(n * cost(stage.batch_size, stage.seq_len) for stage, n in steps_of(stages, steps).items())

        return used

    def _cost_of_step(self, cfg: DictConfig, keep: bool) -> Callable[[int, int], float]:
        """By ``batch_size`` and ``seq_len``."""
        if self.kind == "tokens":
            return lambda batch_size, seq_len: batch_size * seq_len
        if self.kind == "flops":
            model = self._model(cfg, keep)
            return lambda batch_size, seq_len: model.flops_per_token(seq_len) * batch_size * seq_len
        from lmxexp.sweep.step_time import step_seconds

        configuration = same_budget(cfg, self.kind)

        def seconds(batch_size: int, seq_len: int) -> float:
            known = configuration, batch_size, seq_len
            if known not in self._seconds:
                self._seconds[known] = step_seconds(cfg, self.vocabulary(cfg), Stage(0, batch_size, seq_len))
            return self._seconds[known]

        return seconds

    def vocabulary(self, cfg: DictConfig) -> int:
        """The vocabulary that the run will have. Reads the data where nothing else tells."""
        from lmxexp.data.build import build_source
        from lmxexp.describe import vocabulary

        size, source = vocabulary(cfg)
        if not source.startswith("assumed") and not source.endswith("at most"):
            return size
        text: Any = OmegaConf.to_container(cfg.data, resolve=True)
        text = {key: value for key, value in text.items() if key not in _NOT_OF_THE_TEXT}
        known = json.dumps([text, OmegaConf.to_container(cfg.tokenizer, resolve=True)], default=str)
        if known not in self._vocabularies:
            cfg = copy.deepcopy(cfg)  # instantiate resolves interpolations in place
            self._vocabularies[known] = build_source(cfg).vocab_size
        return self._vocabularies[known]

    def _model(self, cfg: DictConfig, keep: bool) -> LanguageModel:
        """The model with no weight made: MLX computes an array once it is looked at."""
        from lmxexp.build import build
        from lmxexp.train.random_state import get_random_state, set_random_state

        vocab_size = self.vocabulary(cfg)
        random_state = get_random_state()
        cfg = copy.deepcopy(cfg) if keep else cfg  # instantiate resolves interpolations in place
        try:
            return build(cfg.model.net)(vocab_size=vocab_size)
        finally:
            set_random_state(random_state)

    def _peak_gb(self, cfg: DictConfig) -> float:
        from lmxexp.describe import describe

        described = describe(cfg, self.vocabulary(cfg))
        if described.memory is None:
            refuse(f"match=memory: there is no estimate: {described.memory_missing}; match another budget")
        return described.memory.peak / 1e9


def same_budget(cfg: DictConfig, kind: str) -> str:
    """A text that is equal for configurations that use the same of a budget: they differ in seeds, in what a training
    step does not see, or, for time and memory, in numbers of optimizer and schedule.

    A number with a point there, such as the learning rate, changes the course of training and not its cost.
    """
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    kept = {key: value for key, value in raw.items() if key not in _NOT_OF_A_STEP}
    kept["data"] = {key: value for key, value in (raw.get("data") or {}).items() if key != "seed"}
    for key in ("optim", "param_groups", "schedule"):
        kept[key] = _without_rates(raw.get(key)) if kind in ("time", "memory") else None
    return json.dumps(kept, sort_keys=True, default=str)


def _without_rates(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_rates(v) for key, v in value.items() if key != "learning_rate"}
    if isinstance(value, list):
        return [_without_rates(v) for v in value]
    return "a number" if isinstance(value, float) else value
