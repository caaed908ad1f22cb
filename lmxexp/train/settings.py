"""The settings of the training loop, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lmxexp.interfaces import ConfigError

if TYPE_CHECKING:
    from lmxexp.model.language_model import Remat


@dataclass(frozen=True)
class TrainSettings:
    """``conf/train/*.yaml``, typed. Meanings and units stand there.

    ``eval_every``, ``checkpoint_every`` and ``keep`` reach the callbacks, ``batch_size`` and ``seq_len`` the data, by
    interpolation; they are here as well so that one place checks all of them.

    Raises:
        ConfigError: a number out of range.
    """

    steps: int
    batch_size: int
    seq_len: int
    n_micro: int | Literal["auto"]
    precision: Literal["auto", "fp32", "bf16", "mixed"]
    max_grad_norm: float | None
    compile: bool
    self_test: bool
    memory_limit_gb: float | None
    log_every: int
    eval_every: int
    checkpoint_every: int
    keep: int
    # With defaults from here on: the configurations of earlier runs do not have them.
    remat: Literal["none", "light", "block", "auto"] = "none"
    parallel: Literal["data", "fsdp"] | None = None
    profile: bool = False
    profile_capture: str | None = None

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "seq_len", "log_every", "keep"):
            self._require(key, getattr(self, key) >= 1, "must be at least 1")
        for key in ("eval_every", "checkpoint_every"):
            self._require(key, getattr(self, key) >= 0, "must not be negative; 0 means at the end only")
        if self.n_micro != "auto":
            self._require("n_micro", isinstance(self.n_micro, int) and self.n_micro >= 1, "must be at least 1, or auto")
            self._require(
                "batch_size", self.batch_size % self.parts == 0, f"must be a multiple of train.n_micro={self.n_micro}"
            )
        for key in ("max_grad_norm", "memory_limit_gb"):
            value = getattr(self, key)
            self._require(key, value is None or value > 0, "must be positive; null turns it off")
        if self.profile_capture is not None:
            self._require("profile_capture", self.profile, "is taken by the profile: add train.profile=true")
            self._require(
                "profile_capture", self.profile_capture.endswith(".gputrace"), "must be a file that ends in .gputrace"
            )

    @property
    def autos(self) -> list[str]:
        """The settings that a run chooses by the memory that there is."""
        return [key for key in ("n_micro", "remat") if getattr(self, key) == "auto"]

    @property
    def parts(self) -> int:
        """``n_micro``, once it is a number; see `lmxexp.train.fitted`."""
        assert isinstance(self.n_micro, int), "auto, which no run has found a number for yet"
        return self.n_micro

    @property
    def chosen_remat(self) -> Remat:
        """``remat``, likewise."""
        assert self.remat != "auto", "which no run has found a word for yet"
        return self.remat

    def _require(self, key: str, holds: bool, mend: str) -> None:
        if not holds:
            raise ConfigError(f"train.{key}={getattr(self, key)} {mend}")
