"""Sources made from the YAML files, with small local stand-ins for what they would read or download."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lmxexp.tokenizer.byte import ByteTokenizer

CONF = Path(__file__).parents[2] / "conf" / "data"
# A mixture is of others; `test_mixture` has what it promises.
KINDS = sorted(file.stem for file in CONF.glob("*.yaml") if file.stem != "mixture")

OF_DATASETS = {"hf", "tinystories", "wikitext", "fineweb_edu", "openwebtext", "dclm", "c4", "stack_python"}
"""What the ``datasets`` library loads."""

DOCUMENTS = [
    f"Story {i}.\nÉmile saw {i * i} ships \N{SHIP} and \N{GRINNING FACE}.\n\nThe end.\n" + "x" * i for i in range(40)
]


def write_inputs(directory: Path) -> dict[str, dict[str, Any]]:
    """The overrides of each kind that cannot do without."""
    directory.mkdir(parents=True, exist_ok=True)
    text = directory / "text.txt"
    text.write_bytes("".join(DOCUMENTS).encode())
    rows = directory / "rows.json"
    rows.write_text("".join(json.dumps({"text": d, "n": i}) + "\n" for i, d in enumerate(DOCUMENTS)))
    table = pa.table({"content": DOCUMENTS, "lang": ["Python"] * len(DOCUMENTS), "size": list(map(len, DOCUMENTS))})
    pa.parquet.write_table(table, directory / "files.parquet", row_group_size=7)
    table = pa.table({"text": DOCUMENTS, "id": list(map(str, range(len(DOCUMENTS)))), "score": [3.5] * len(DOCUMENTS)})
    pa.parquet.write_table(table, directory / "pages.parquet", row_group_size=7)
    few = directory / "few.json"
    few.write_text("".join(json.dumps({"text": d, "n": i}) + "\n" for i, d in enumerate(DOCUMENTS[:7])))
    pages = {"name": "parquet", "config": None, "data_files": str(directory / "pages.parquet")}
    return {
        "text": {"path": str(text)},
        "hf": {"name": "json", "data_files": str(rows)},
        "tinyshakespeare": {"path": str(text)},
        "tinystories": {"name": "json", "data_files": {"train": str(rows), "validation": str(few)}},
        "wikitext": {"name": "json", "config": None, "data_files": {"train": str(rows), "validation": str(few)}},
        "c4": {
            "name": "json",
            "config": None,
            "data_files": {"train": compressed(rows), "validation": compressed(few)},
        },
        **{kind: {**pages, "val_documents": 7} for kind in ("fineweb_edu", "openwebtext", "dclm")},
        "stack_python": {"name": "parquet", "data_files": str(directory / "files.parquet"), "val_documents": 7},
        "python_stdlib": {"val_fraction": 0.2},
        "mqar": {"vocab_size": 64, "n_pairs": 3, "n_eval": 11},
        "copying": {"vocab_size": 9, "n_eval": 11},
        "induction": {"vocab_size": 7, "n_eval": 11},
    }


def compressed(file: Path) -> str:
    """The file with gzip, as C4 has it."""
    packed = file.with_name(f"{file.name}.gz")
    packed.write_bytes(gzip.compress(file.read_bytes()))
    return str(packed)


def write_library(root: Path) -> Path:
    """A standard library of 30 files, with what has to be left out."""
    for i in range(30):
        file = root / ("", "email", "xml/dom")[i % 3] / f"module{i}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'"""Module {i}."""\n\ndef f{i}(x):\n    return x + {i}  # é\n' + "# more\n" * i)
    for name in ("test/a.py", "idlelib/idle_test/b.py", "site-packages/c.py", "x/__pycache__/d.py", "x/tests/e.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("LEFT_OUT = 1\n")
    (root / "empty.py").write_text("")
    (root / "data.txt").write_text("NOT_PYTHON\n")
    (root / "_sysconfigdata__linux.py").write_text("LEFT_OUT = 1\n")
    return root


def make(kind: str, tokenizer: Any = ByteTokenizer, *, seq_len=16, batch_size=4, seed=1, **overrides: Any) -> Any:
    """What the runner does with ``conf/data/<kind>.yaml``."""
    cfg = OmegaConf.create({"seed": seed, "train": {"seq_len": seq_len, "batch_size": batch_size}})
    cfg.data = OmegaConf.load(CONF / f"{kind}.yaml")
    for key, value in overrides.items():
        assert key in set(cfg.data), f"{kind}.yaml has no {key}"  # `in cfg.data` is false of what is ???
        cfg.data[key] = value
    return instantiate(cfg.data, _convert_="all")(tokenizer=tokenizer)
