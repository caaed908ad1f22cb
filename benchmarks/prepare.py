"""What preparing tokens costs: memory on a corpus of gigabytes, and time beside the tokenizer alone.

    python benchmarks/prepare.py memory --gb 2 --format jsonl     # resident memory of the process, at most
    python benchmarks/prepare.py speed                            # tokens/s, beside a bare loop over the same texts

The corpus is the source text of the Python packages at hand, over and over in another order, in documents of about
4,000 characters. The bare loop holds its texts in memory and throws the result away; preparing reads them from a file
as ``data.streaming=true`` does, turns the result into numbers, hashes them and writes them.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

CHARS = 4000


def sources() -> list[str]:
    """Documents of real text."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = "".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
    return [text[i : i + CHARS] for i in range(0, len(text), CHARS)]


def documents(n_bytes: float) -> Iterator[str]:
    """So many bytes of them."""
    texts, rng, made = sources(), random.Random(0), 0
    while made < n_bytes:
        text = f"{made}\n{rng.choice(texts)}"
        made += len(text.encode())
        yield text


def write(file: Path, n_bytes: float) -> None:
    """A corpus in the format of the file's name."""
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        writer, rows = None, []
        for text in documents(n_bytes):
            rows.append({"text": text, "id": len(rows)})
            if len(rows) == 100_000:  # large row groups, as some corpora have them
                table = pa.Table.from_pylist(rows)
                writer = writer or pq.ParquetWriter(file, table.schema)
                writer.write_table(table)
                rows = []
        table = pa.Table.from_pylist(rows)
        writer = writer or pq.ParquetWriter(file, table.schema)
        writer.write_table(table)
        writer.close()
        return
    with open(file, "w", encoding="utf-8") as out:
        for text in documents(n_bytes):
            out.write(text if file.suffix == ".txt" else json.dumps({"text": text}) + "\n")


def peak_memory() -> int:
    """Bytes that were resident at most."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would be that of the process that started this one, where that had more
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def child(file: str, tokenizer: str, cache: str) -> None:
    """Prepare, and print what it took."""
    from lmxexp.compose import compose
    from lmxexp.prepare import prepare

    builder = {".jsonl": "json", ".parquet": "parquet"}.get(Path(file).suffix)
    data = (
        ["data=text", f"data.path={file}", "data.val_fraction=0.002"]  # a tenth would be evaluated, and mapped whole
        if builder is None
        else ["data=hf", f"data.name={builder}", f"data.data_files={file}", "data.streaming=true"]
    )
    data += [] if builder is None else ["data.val_documents=1000"]
    record = prepare(compose([*data, f"tokenizer={tokenizer}", f"data.cache_dir={cache}"]))
    print(json.dumps({"peak": peak_memory(), "tokens": record["train_tokens"], "seconds": record["seconds"]}))


def memory(args: argparse.Namespace) -> None:
    """The peak of a process that does nothing else, and of one that prepares next to nothing."""
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        for n_bytes in (1e7, args.gb * 1e9):
            file = Path(directory) / f"corpus.{args.format}"
            write(file, n_bytes)
            cache = Path(directory) / f"cache-{n_bytes:.0f}"
            command = [sys.executable, __file__, "child", str(file), args.tokenizer, str(cache)]
            done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"{args.format} {file.stat().st_size / 1e9:.2f} GB, tokenizer={args.tokenizer}: peak resident "
                f"{done['peak'] / 1e6:.0f} MB, {done['tokens'] / 1e6:.1f}M tokens in {done['seconds']:.1f} s",
                flush=True,
            )


def speed(args: argparse.Namespace) -> None:
    """Medians over rounds in which all take their turn, and the middle half of the ratios."""
    from lmxexp.data.hf_corpus import Selection
    from lmxexp.data.hf_streamed import streamed_corpus
    from lmxexp.data.token_file import tokens_of
    from lmxexp.tokenizer.bpe import BpeTokenizer
    from lmxexp.tokenizer.byte import ByteTokenizer

    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        file = Path(directory) / "corpus.jsonl"
        write(file, args.mb * 1e6)
        texts = list(documents(args.mb * 1e6))[1:]
        source = {"name": "json", "config": None, "data_files": str(file), "revision": None}
        corpus = streamed_corpus(source, Selection("train", None, 1, 0.1, None, "text"), Path(directory))

        def prepared(tokenizer: Any) -> int:
            with tempfile.TemporaryDirectory(dir=directory) as cache:
                names: dict[str, Any] = {"tokenizer_hash": "", "source": "", "split": "train"}
                return tokens_of(corpus.train, tokenizer, cache_dir=Path(cache), **names)[1].count

        def bare(encode_batch: Any) -> int:
            batches = (texts[i : i + 500] for i in range(0, len(texts), 500))
            return sum(len(encoded) for batch in batches for encoded in encode_batch(batch))

        bpe = BpeTokenizer(lambda: iter(texts), vocab_size=4096, max_chars=5_000_000)
        byte = ByteTokenizer()
        wide = bpe.tokenizer
        contestants = {
            "bpe: encode_batch": lambda: bare(lambda batch: wide.encode_batch(batch, add_special_tokens=False)),
            "bpe: encode_batch_fast": lambda: bare(lambda b: wide.encode_batch_fast(b, add_special_tokens=False)),
            "bpe: prepare": lambda: prepared(bpe),
            "byte: bare": lambda: bare(lambda batch: [byte.encode(text).astype(np.uint16) for text in batch]),
            "byte: prepare": lambda: prepared(byte),
        }
        wall: dict[str, list[float]] = {name: [] for name in contestants}
        cores: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(args.rounds):
            for name, run in contestants.items():
                began, began_cores = time.perf_counter(), time.process_time()
                count = run()
                wall[name].append((time.perf_counter() - began) / count)
                cores[name].append((time.process_time() - began_cores) / count)
        for name in contestants:
            print(
                f"{name:24} {1e-6 / statistics.median(wall[name]):9.3f}M tokens/s, "
                f"{1e9 * statistics.median(cores[name]):7.1f} ns of all cores a token"
            )
        for name, alone in (("bpe", "encode_batch"), ("bpe", "encode_batch_fast"), ("byte", "bare")):
            said = f"{name}: speed of prepare / {alone}, by"
            for what, spent in (("the clock", wall), ("time of all cores", cores)):
                of_all = zip(spent[f"{name}: {alone}"], spent[f"{name}: prepare"], strict=True)
                ratios = sorted(a / p for a, p in of_all)
                low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
                print(f"{said} {what}: {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    of_memory = commands.add_parser("memory")
    of_memory.add_argument("--gb", type=float, default=2.0)
    of_memory.add_argument("--format", choices=["jsonl", "parquet", "txt"], default="jsonl")
    of_memory.add_argument("--tokenizer", choices=["byte", "bpe"], default="byte")
    of_memory.set_defaults(run=memory)
    of_speed = commands.add_parser("speed")
    of_speed.add_argument("--mb", type=float, default=5.0)
    of_speed.add_argument("--rounds", type=int, default=15)
    of_speed.set_defaults(run=speed)
    for command in (of_memory, of_speed):
        command.add_argument("--dir", help="for the corpus and the tokens; by default among the temporary files")
    arguments = parser.parse_args()
    arguments.run(arguments)
