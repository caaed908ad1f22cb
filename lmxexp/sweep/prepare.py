"""What is checked and learned of every point before the first one starts."""

from __future__ import annotations

import copy
import json
from typing import Any

from omegaconf import DictConfig, OmegaConf


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Plain containers, interpolations resolved."""
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    return config


class Preparation:
    """Builds of each point what shows its mistakes, but no weights; what several points share is built once.

    After it, each point's data exists, its tokens are in the cache, and its model and optimizer can be constructed.
    """

    def __init__(self) -> None:
        self._sources: dict[str, tuple[str, int, bool]] = {}
        self._built: set[str] = set()

    def identity(self, cfg: DictConfig, config: dict[str, Any] | None = None) -> str:
        """The point's identity, see `lmxexp.identity`.

        Args:
            cfg: unresolved; it stays as it is.
            config: the same, resolved, where it is at hand: resolving takes longer than all the rest.

        Raises:
            ConfigError, OSError: data that cannot be had.
        """
        from lmxexp.identity import identity

        config = config or resolved(cfg)
        return identity(config, self._source(cfg, config)[0])

    def try_out(self, cfg: DictConfig, config: dict[str, Any] | None = None) -> None:
        """Construct the point's parts.

        Args:
            cfg: unresolved; it stays as it is.
            config: the same, resolved, where it is at hand.

        Raises:
            ConfigError: sizes or kinds that do not fit together.
        """
        from lmxexp.build import build
        from lmxexp.model.build import check_documents, check_positions
        from lmxexp.optim.build import optimizer_of
        from lmxexp.ramp.build import ramp_of
        from lmxexp.train.random_state import get_random_state, set_random_state

        config = config or resolved(cfg)
        _, vocab_size, document_mask = self._source(cfg, config)
        kept = ("model", "train", "optim", "param_groups", "schedule", "ramp", "loss", "callback", "logger")
        parts = [vocab_size, document_mask, config["data"]["_target_"], *(config.get(part) for part in kept)]
        key = json.dumps(parts, sort_keys=True, default=str)
        if key in self._built:
            return
        cfg = copy.deepcopy(cfg)  # instantiate resolves interpolations in place
        random_state = get_random_state()
        build(cfg.train)
        model = build(cfg.model.net)(vocab_size=vocab_size)  # arrays are made when they are looked at: never
        check_positions(model, cfg.train.seq_len)
        if document_mask:
            check_documents(model, compute=False)  # there are no weights
        build(cfg.model.init)
        optimizer_of(cfg)
        ramp_of(cfg)
        build(cfg.loss)
        for group in ("callback", "logger"):  # of which there may be none
            if cfg.get(group):
                build(cfg[group])
        set_random_state(random_state)
        self._built.add(key)

    def _source(self, cfg: DictConfig, config: dict[str, Any]) -> tuple[str, int, bool]:
        """Fingerprint, vocabulary, and whether documents are kept apart."""
        from lmxexp.data.build import build_source

        key = json.dumps([config["data"], config["tokenizer"]], sort_keys=True, default=str)
        if key not in self._sources:
            source = build_source(copy.deepcopy(cfg))
            self._sources[key] = source.fingerprint, source.vocab_size, getattr(source, "document_mask", False)
        return self._sources[key]
