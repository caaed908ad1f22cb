"""Writes docs/sizes.md, how many parameters each preset has at each size: ``python docs/sizes.py``.

``python docs/sizes.py --fit [PRESET …]`` proposes the `widths` and `depths` that bring presets to their sizes.
"""

import argparse
import copy
import math
import re
import sys
from functools import cache
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lmxexp import compose

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "conf" / "model"
PAGE = ROOT / "docs" / "sizes.md"
README = ROOT / "README.md"
VOCABULARIES = {"10m": 256, "50m": 256, "124m": 50257, "350m": 50257}
TOLERANCE = 0.03

HEAD = """\
# Sizes

Parameters of every preset at every size that is named by a number, in millions; with bytes as tokens (256) for 10m
and 50m, with GPT-2's 50,257 tokens for 124m and 350m. All are within {tolerance:.0%} of the name: `d_model` and
`n_heads` are the size's, and a preset that would miss it has a width of the feed-forward (`widths`) or a number of
layers (`depths`) of its own. `model.d_ff=…` and `model.n_layers=…` on the command line go before both.

Of a mixture of experts a token passes through few; the second number counts those parameters alone.

Written by `python docs/sizes.py`.
"""


def presets() -> list[str]:
    """Presets that are a model as they stand."""
    return sorted(f.stem for f in MODEL.glob("*.yaml") if f.stem[0] != "_" and "???" not in f.read_text("utf-8"))


def target(size: str) -> float:
    """The parameters that a size is named by."""
    return float(size.removesuffix("m")) * 1e6


@cache
def _preset(name: str) -> DictConfig:
    return compose([f"model={name}"])


def configured(preset: str, size: str) -> DictConfig:
    """``compose([f"model={preset}", f"size={size}"])``, which takes a while."""
    cfg = copy.deepcopy(_preset(preset))
    cfg.model = OmegaConf.merge(cfg.model, OmegaConf.load(MODEL / "size" / f"{size}.yaml"))
    return cfg


def count(preset: str, size: str, **sizes: int | None) -> tuple[int, int]:
    """Parameters, and those of them that a token passes through. ``sizes`` go before the size's own."""
    from lmxexp.counts import by_layer, summed, total

    cfg = configured(preset, size)
    cfg.model.update(sizes)
    model = instantiate(cfg.model.net, _convert_="all")(vocab_size=VOCABULARIES[size])
    layers, others = by_layer(model, 1)
    whole = total(summed([others, *layers]))
    return whole.params, whole.active_params


@cache
def counts() -> dict[tuple[str, str], tuple[int, int]]:
    """`count` of every preset at every size."""
    return {(preset, size): count(preset, size) for preset in presets() for size in VOCABULARIES}


def misses() -> list[str]:
    """The presets that miss a size, in words."""
    return [
        f"model={preset} size={size} has {n:,} parameters, {n / target(size) - 1:+.1%}"
        for (preset, size), (n, _) in counts().items()
        if abs(n / target(size) - 1) > TOLERANCE
    ]


def page() -> str:
    """The text of docs/sizes.md."""
    return HEAD.format(tolerance=TOLERANCE) + "\n" + table()


def readme() -> str:
    """The README with the table as it should be, under its last heading."""
    text = README.read_text("utf-8")
    return text[: text.index("| preset | 10m")] + table()


def table() -> str:
    """Parameters of every preset at every size, in millions."""
    lines = ["| preset | " + " | ".join(VOCABULARIES) + " |", "|---|" + "---:|" * len(VOCABULARIES)]
    for preset in presets():
        cells = []
        for size in VOCABULARIES:
            n, active = counts()[preset, size]
            cells.append(f"{n / 1e6:.1f}" + (f" / {active / 1e6:.1f}" if active != n else ""))
        lines.append(f"| {preset} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def fit(preset: str, size: str) -> dict[str, int]:
    """``n_layers`` or ``d_ff``, or both, that bring a preset to a size; empty if it is there by itself.

    A number of layers alone if one will do: then the feed-forward keeps the width that follows from d_model, and all
    its kinds are of one size. Otherwise a width near that one, otherwise both, changed as little as can be.
    """
    plain = int(_plain(size)["n_layers"])
    pattern = _preset(preset).model.net.pattern
    ends, period = (len(pattern.get("first") or []) + len(pattern.get("last") or []), len(pattern["repeat"]))

    @cache
    def error(n_layers: int, d_ff: int | None = None) -> float:
        return count(preset, size, n_layers=n_layers, d_ff=d_ff)[0] / target(size) - 1

    if abs(error(plain)) <= TOLERANCE:
        return {}
    whole = [n for n in range(ends + period, 3 * plain) if period > 4 or (n - ends) % period == 0]
    best = min(whole, key=lambda n: abs(_line(error, plain, n)))
    if abs(error(best)) < TOLERANCE and plain / 2 <= best <= 2 * plain:
        return {"n_layers": best}
    found = []
    for n_layers in [plain, *sorted(whole, key=lambda n: abs(n - plain))]:
        if abs(_line(error, plain, n_layers)) > 2.0 or error(n_layers, 256) == error(n_layers, 1280):
            continue
        slope = (error(n_layers, 1280) - error(n_layers, 256)) / 1024
        own = 256 + (error(n_layers) - error(n_layers, 256)) / slope
        nearest = 8 * round((256 - error(n_layers, 256) / slope) / 8)
        for d_ff in (nearest - 8, nearest, nearest + 8):
            if d_ff >= 64 and abs(error(n_layers, d_ff)) < TOLERANCE:
                change = math.log(d_ff / own) ** 2 + math.log(n_layers / plain) ** 2
                sizes = {"d_ff": d_ff} if n_layers == plain else {"n_layers": n_layers, "d_ff": d_ff}
                found.append((change + 3 * abs(error(n_layers, d_ff)), sizes))
        if n_layers == plain and found and min(found, key=_first)[0] < math.log(1.7) ** 2:
            break
    return min(found, key=_first)[1]


def _line(error, plain: int, n_layers: int) -> float:
    """About ``error(n_layers)``: it grows by as much with every layer."""
    return error(plain) + (n_layers - plain) * (error(2 * plain) - error(plain)) / plain


def _first(pair: tuple) -> float:
    return pair[0]


def _plain(size: str) -> DictConfig:
    """A size as it is for a preset without `widths` and `depths`."""
    text = (MODEL / "size" / f"{size}.yaml").read_text("utf-8")
    plain = OmegaConf.create(re.sub(r"\$\{oc\.select:[^,]*,(.*?)\}", r"\1", text))
    assert isinstance(plain, DictConfig)
    return plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--fit", nargs="*", metavar="PRESET", help="propose sizes for these presets, or those that miss one"
    )
    args = parser.parse_args()
    if args.fit is None:
        PAGE.write_text(page(), encoding="utf-8")
        README.write_text(readme(), encoding="utf-8")
        sys.exit("\n".join(misses()) or None)
    for preset in args.fit or sorted({line.split()[0].removeprefix("model=") for line in misses()}):
        found = {size: fit(preset, size) for size in VOCABULARIES}
        print(f"{preset}:", flush=True)
        for key, setting in (("widths", "d_ff"), ("depths", "n_layers")):
            if values := {size: sizes[setting] for size, sizes in found.items() if setting in sizes}:
                print(f"  {key}: {{{', '.join(f'{size}: {n}' for size, n in values.items())}}}")


if __name__ == "__main__":
    main()
