"""``python -m lmxexp.describe model=… size=…``: what a configuration would train, without training it."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lmxexp.counts import Parts
    from lmxexp.model.language_model import LanguageModel
    from lmxexp.train.peak_memory import MemoryEstimate
    from lmxexp.train.settings import TrainSettings

USUAL_VOCABULARY = 50257
"""GPT-2's: assumed where the vocabulary is known only once the data is read."""


@dataclass(frozen=True)
class LayerKind:
    """The layers of one name in ``model.net.blocks``, all together."""

    name: str
    count: int
    made_of: str
    """``attention=gqa ffn=swiglu``."""
    parts: Parts
    state: int
    """Cache elements of one sequence after ``seq_len`` positions."""


@dataclass(frozen=True)
class OptimizerPart:
    """What one optimizer updates: all parameters, or a group of them."""

    group: str
    kind: str
    params: int
    state_bytes: int

    @property
    def bytes_per_param(self) -> float:
        return self.state_bytes / max(self.params, 1)


@dataclass(frozen=True)
class Description:
    """What `describe` finds. Counts are exact; ``memory`` is an estimate."""

    name: str
    vocab_size: int
    vocab_source: str
    batch_size: int
    seq_len: int
    ramp: str
    """The stages in which one of these grows; empty where neither does. All else here is of the last."""
    layout: str
    layers: list[LayerKind]
    parts: Parts
    """Of the whole model."""
    outside: Parts
    """Of what is no layer."""
    params: int
    """Trainable; a tied matrix counts once."""
    active_params: int
    frozen_params: int
    flops: int
    """Per token, forward, on average over ``seq_len`` positions."""
    training_flops: int
    """Per token, forward and backward."""
    state: int
    """Cache elements of one sequence after ``seq_len`` positions."""
    state_growth: float
    """Elements that each of the next ``seq_len`` positions adds to it, on average."""
    optimizer: list[OptimizerPart]
    precision: str
    devices: str
    """How several share the work; empty for one."""
    memory: MemoryEstimate | None
    """Of one device."""
    memory_missing: str
    """Why there is no estimate."""


def describe(cfg: DictConfig, vocab_size: int | None = None, n_devices: int = 1) -> Description:
    """Count parameters, FLOPs, state and memory of what ``cfg`` would train.

    Nothing is computed and no weight is made: arrays are counted by their shapes.

    Args:
        cfg: from `lmxexp.compose`.
        vocab_size: V; None: the tokenizer's where that is known without the data, else 50,257.
        n_devices: that are to train it together, as ``train.parallel`` says.

    Raises:
        ConfigError: a setting that cannot work, as far as it shows before the data is read.
    """
    from lmxexp import counts
    from lmxexp.build import build
    from lmxexp.cli.validate import check
    from lmxexp.model.language_model import lay_out
    from lmxexp.ops.trees import by_path
    from lmxexp.parallel.setup import several
    from lmxexp.ramp.build import ramp_of
    from lmxexp.ramp.stages import say
    from lmxexp.train.random_state import get_random_state, set_random_state

    check(cfg)
    random_state = get_random_state()
    written, cfg = cfg, copy.deepcopy(cfg)  # instantiate resolves interpolations in place
    vocab_size, vocab_source = (vocab_size, "given") if vocab_size is not None else vocabulary(cfg)
    settings: TrainSettings = build(cfg.train)
    model: LanguageModel = build(cfg.model.net)(vocab_size=vocab_size)
    if "blocks" in cfg.model.net:
        names = lay_out(cfg.model.n_layers, cfg.model.net.pattern, cfg.model.net.blocks)
        stack = counts.layout(names, cfg.model.net.pattern)
    else:  # a model that came as it is
        names = ["layer"] * len(model.layers)
        stack = f"{len(names)} x [layer]"
    layers, others = counts.by_layer(model, settings.seq_len)
    kinds = []
    for name in dict.fromkeys(names):
        at = [i for i, other in enumerate(names) if other == name]
        state = sum(_state_size(model.layers[i], settings.seq_len) for i in at)
        kinds.append(LayerKind(name, len(at), made_of(written, name), counts.summed(layers[i] for i in at), state))
    parts = counts.summed([others, *layers])
    whole = counts.total(parts)
    flops = whole.flops + whole.mixing_flops
    assert 3 * flops == model.flops_per_token(settings.seq_len), "a part of the model is not counted"
    state = model.state_size(settings.seq_len)
    precision, optimizer, memory, missing = _training(cfg, settings, model, n_devices)
    set_random_state(random_state)  # modules have drawn weights, which nobody looked at
    return Description(
        name=str(cfg.name),
        vocab_size=vocab_size,
        vocab_source=vocab_source,
        batch_size=settings.batch_size,
        seq_len=settings.seq_len,
        ramp=say(ramp_of(cfg)),
        layout=stack,
        layers=kinds,
        parts=parts,
        outside=counts.summed([others]),
        params=whole.params,
        active_params=whole.active_params,
        frozen_params=sum(p.size for p in by_path(model.parameters()).values()) - whole.params,
        flops=flops,
        training_flops=3 * flops,
        state=state,
        state_growth=(model.state_size(2 * settings.seq_len) - state) / settings.seq_len,
        optimizer=optimizer,
        precision=precision,
        devices=several(settings, n_devices),
        memory=memory,
        memory_missing=missing,
    )


def vocabulary(cfg: DictConfig) -> tuple[int, str]:
    """How many tokens there will be, and how that is known; without reading any data."""
    import pkgutil

    if not getattr(pkgutil.resolve_name(cfg.data._target_), "reads_tokenizer", True) and "vocab_size" in cfg.data:
        return cfg.data.vocab_size, "data.vocab_size"
    kind = f"tokenizer={cfg.choice.tokenizer}"
    size = getattr(pkgutil.resolve_name(cfg.tokenizer._target_), "vocab_size", None)
    if isinstance(size, int):
        return size, kind
    if isinstance(cfg.tokenizer.get("vocab_size"), int):
        return cfg.tokenizer.vocab_size, f"{kind}, at most"
    return USUAL_VOCABULARY, f"assumed: {kind} tells only with its data; --vocab N"


def made_of(cfg: DictConfig, name: str) -> str:
    """The kinds that fill a layer, in the words that choose them: ``attention@ssm=mamba2 ffn=swiglu``."""
    from omegaconf import OmegaConf

    if "blocks" not in cfg.model.net:
        return f"model={cfg.choice.model}"
    raw: Any = OmegaConf.to_container(cfg.model.net.blocks[name], resolve=False)
    parts = [_chosen(cfg, raw[slot]) for slot in ("mixer", "ffn", "block") if raw.get(slot) is not None]
    for slot, value in (raw.get("slots") or {}).items():
        parts.append(f"{slot}={'null' if value is None else _chosen(cfg, value).rpartition('=')[2]}")
    return " ".join(parts)


def _chosen(cfg: DictConfig, value: Any) -> str:
    """``${model.ssm}`` as ``attention@ssm=mamba2``; a node that no group filled by the name of its class."""
    if isinstance(value, str):
        entry = value.removeprefix("${model.").removesuffix("}").split(".")[0]
        for key, kind in cfg.choice.items():
            if str(key).rpartition("@")[2] == entry:
                return f"{key}={kind}"
        return value
    return str(value.get("_target_", "a node")).rpartition(".")[2]


def _state_size(layer: Any, seq_len: int) -> int:
    return layer.self_attn.state_size(seq_len) if layer.self_attn is not None else 0


def _training(
    cfg: DictConfig, settings: TrainSettings, model: LanguageModel, n_devices: int
) -> tuple[str, list[OptimizerPart], MemoryEstimate | None, str]:
    """Precision, the optimizer's parts, the estimate of memory, and why there is none."""
    import mlx.core as mx

    from lmxexp import device
    from lmxexp.build import build
    from lmxexp.optim.build import groups_of, optimizer_of
    from lmxexp.parallel import setup
    from lmxexp.ramp.build import ramp_of
    from lmxexp.train import precision
    from lmxexp.train.fitted import fitted
    from lmxexp.train.memory import Ledger

    chosen = precision.resolve(settings.precision, on_gpu=device.is_gpu())
    if chosen == "bf16":
        model.set_dtype(mx.bfloat16)
    optimizer = optimizer_of(cfg)
    optimizer.init(model.trainable_parameters())
    parts = [
        OptimizerPart(
            group.name,
            type(group.optimizer).__name__,
            sum(p.size for p in group.parameters.values()),
            group.state_bytes,
        )
        for group in groups_of(optimizer, model.trainable_parameters())
    ]
    setup.check_shares(n_devices, settings, ramp_of(cfg), optimizer)
    share, n_parts = setup.share(n_devices, settings), setup.n_parts(n_devices, settings)
    try:
        ledger = Ledger(
            model,
            optimizer,
            build(cfg.loss),
            share,
            precision.compute_dtype(chosen),
            document_mask=_document_mask(cfg.data),
            n_devices=n_parts,
        )
        # What it would take is wanted, wherever it is to run: of a number nobody is warned here.
        chosen_way = fitted(share, ledger) if share.autos else share
        memory = ledger.of(chosen_way.parts, chosen_way.chosen_remat)
    except ValueError as error:  # a primitive that MLX cannot trace
        return chosen, parts, None, str(error)
    return chosen, parts, memory, ""


def _document_mask(data: DictConfig) -> bool:
    """Whether batches will have ``segment_ids``: as the data says, or each of the sources that it is made of."""
    of = data.get("sources")
    nodes = [data, *(node for node in (of.values() if hasattr(of, "values") else ()) if hasattr(node, "get"))]
    return any(bool(node.get("document_mask", False)) for node in nodes)


def main(argv: list[str] | None = None) -> int:
    """Entry point of the command; the exit code."""
    from lmxexp.cli import command

    parser = argparse.ArgumentParser(
        prog="python -m lmxexp.describe",
        description="Parameters, FLOPs, state and memory of what `python -m lmxexp` would train. Trains nothing.",
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", help="as of `python -m lmxexp`: model=llama size=124m …")
    parser.add_argument("--vocab", type=int, metavar="N", help="vocabulary; by default the tokenizer's, if it is known")
    parser.add_argument("--config-dir", metavar="DIR", help="your own kinds, as of `python -m lmxexp`")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="that train it together (train.parallel)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_intermixed_args(argv)

    def work() -> None:
        description = _describe(args)
        if args.json:
            print(json.dumps(dataclasses.asdict(description), indent=2))
        else:
            from lmxexp.describe_text import show

            show(description)

    return command.run_composed(args.overrides, work)


def _describe(args: argparse.Namespace) -> Description:
    from lmxexp.cli.errors import refuse
    from lmxexp.cli.validate import check
    from lmxexp.compose import compose

    if args.vocab is not None and args.vocab < 1:
        refuse(f"--vocab={args.vocab} must be at least 1")
    if args.devices < 1:
        refuse(f"--devices={args.devices} must be at least 1")
    cfg = compose(args.overrides, args.config_dir)
    check(cfg, args.overrides)
    if args.devices == 1 and cfg.train.parallel is not None:
        refuse(f"train.parallel={cfg.train.parallel}: say on how many, --devices N")
    return describe(cfg, args.vocab, args.devices)


if __name__ == "__main__":
    sys.exit(main())
