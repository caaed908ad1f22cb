"""Data sets of the datasets library, from local files of the schemas that the hub's have."""

import contextlib
import http.server
import os
import subprocess
import sys
import threading
import time

import pytest

from lmxexp.data.hf import HuggingFace
from lmxexp.interfaces import ConfigError
from lmxexp.tokenizer.byte import ByteTokenizer
from tests.data.kinds import DOCUMENTS

WHOLE = "\n".join(DOCUMENTS)
N_TRAIN = int(sum(map(len, DOCUMENTS)) * 0.9)


@pytest.fixture
def hf(make):
    return lambda **settings: make("hf", **settings)


def texts(source):
    return source.tokenizer.decode(source._train.slice(0, len(source._train))), source.tokenizer.decode(source._eval)


def without_joints(text):
    return text.replace("\n", "")


def test_text_keeps_its_newlines(hf, tmp_path):
    text = "First\n\n  second\n" * 20 + "no newline at the end"
    (tmp_path / "a.txt").write_text(text)
    train, validation = texts(hf(name="text", data_files=str(tmp_path / "a.txt")))
    assert train + validation == text
    assert len(train) == int(len(text) * 0.9)


def test_json_by_the_end_of_one_split(hf):
    train, validation = texts(hf())
    assert without_joints(train + validation) == without_joints(WHOLE)
    assert without_joints(train) == without_joints("".join(DOCUMENTS)[:N_TRAIN])


def test_parquet_csv_and_other_columns(hf, tmp_path):
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    table = pa.table({"id": list(range(40)), "content": [d.strip() for d in DOCUMENTS]})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    pa.csv.write_csv(table, tmp_path / "a.csv")
    expected = without_joints("".join(d.strip() for d in DOCUMENTS))
    for name in ("parquet", "csv"):
        source = hf(name=name, data_files=str(tmp_path / f"a.{name}"), text_column="content")
        assert without_joints("".join(texts(source))) == expected
        assert source.record["rows"] == 40


def test_missing_and_empty_texts_are_passed_by(hf, tmp_path):
    (tmp_path / "a.json").write_text('{"text": null}\n{"text": ""}\n' + '{"text": "0123456789"}\n' * 30)
    source = hf(data_files=str(tmp_path / "a.json"))
    assert without_joints("".join(texts(source))) == "0123456789" * 30


def test_a_validation_split_of_its_own(make):
    source = make("tinystories")
    train, validation = texts(source)
    assert train == WHOLE
    assert validation == "\n".join(DOCUMENTS[:7])
    assert source.record["val_rows"] == 7
    assert source.record["split"] == "train"


def test_slices_of_a_split(hf):
    source = hf(split="train[:50%]", val_split="train[50%:]")
    assert texts(source) == ("\n".join(DOCUMENTS[:20]), "\n".join(DOCUMENTS[20:]))


def test_a_local_path_takes_the_place_of_the_data_set(make, tmp_path):
    text = "Second Citizen:\nÉh?\n" * 30
    (tmp_path / "mine.txt").write_text(text)
    for kind in ("tinyshakespeare", "tinystories", "hf"):
        n = int(len(text) * 0.9)
        assert texts(make(kind, path=str(tmp_path / "mine.txt"))) == (text[:n], text[n:])


def test_tiny_shakespeare_from_the_builder_and_from_a_path_are_the_same(make, tmp_path, request):
    request.getfixturevalue("hf_cache")
    file = tmp_path / "input.txt"
    file.write_text("First Citizen:\nBefore we proceed any further, hear me speak.\n\n" * 9)
    built = make("tinyshakespeare", path=None, data_files=str(file))
    local = make("tinyshakespeare", path=str(file))
    assert built.fingerprint == local.fingerprint
    assert texts(built) == texts(local)


@contextlib.contextmanager
def serve(directory):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(directory))

        def log_message(self, *args):
            pass

        def send_header(self, keyword, value):
            if keyword == "Content-Length" and self.path.startswith("/short"):
                value = str(int(value) + 1)
            super().send_header(keyword, value)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_web_addresses_are_downloaded_once(make, tmp_path, request, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    request.getfixturevalue("hf_cache")
    site = tmp_path / "site"
    site.mkdir()
    (site / "input.txt").write_text("All:\nSpeak, speak.\n" * 20)
    (site / "short.txt").write_text("All:\nSpeak, speak.\n" * 20)
    with serve(site) as address:
        source = make("tinyshakespeare", path=None, data_files=f"{address}/input.txt")
        with pytest.raises(ConfigError, match=r"data\.data_files=.*/none\.txt could not be downloaded .*404"):
            make("tinyshakespeare", path=None, data_files=f"{address}/none.txt")
        with pytest.raises(ConfigError, match=r"/short\.txt could not be downloaded"):
            make("tinyshakespeare", path=None, data_files=f"{address}/short.txt")
    again = make("tinyshakespeare", path=None, data_files=f"{address}/input.txt")  # the server is gone
    assert again.fingerprint == source.fingerprint
    assert again.record["data_files"] == f"{address}/input.txt"
    with pytest.raises(ConfigError, match=r"could not be downloaded .*check the address and the network.*data\.path"):
        make("tinyshakespeare", path=None, data_files=f"{address}/other.txt")
    assert not list((tmp_path / "cache" / "downloads").rglob("*.tmp"))


def test_the_second_time_is_cached(hf, monkeypatch):
    first = hf()

    def read_again(*args, **kwargs):
        raise AssertionError("the column was read again")

    assert texts(hf()) == texts(first)
    monkeypatch.setattr("lmxexp.data.hf_corpus.ColumnRows.at", read_again)
    assert texts(hf()) == texts(first)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": None}, r"data\.name=null names no data set"),
        ({"text_column": "txt"}, r"data\.text_column=txt is not a column of json: it has .*n.*; did you mean text\?"),
        ({"text_column": "n"}, r"data\.text_column=n of json holds int64, not text"),
        ({"split": "trian"}, r"data\.split=trian is not a split of json: .*train"),
        ({"val_split": "valid"}, r"data\.val_split=valid is not a split of json"),
        ({"val_fraction": 1.0}, r"data\.val_fraction=1\.0 must lie between 0 and 1"),
        ({"data_files": "nowhere/at_all.json"}, r"data\.data_files=nowhere/at_all\.json cannot be found"),
        ({"name": "parquet"}, r"data\.name=parquet .*cannot be loaded .*right builder"),
        ({"path": "nowhere.txt"}, r"data\.path=nowhere\.txt does not exist"),
        ({"name": "./no/such/directory", "data_files": None}, r"data\.name=\./no/such/directory cannot be found"),
    ],
)
def test_settings_that_cannot_work(hf, settings, message):
    with pytest.raises(ConfigError, match=message):
        hf(**settings)


def test_configurations_of_a_data_set(hf, tmp_path):
    data = tmp_path / "with configurations"
    data.mkdir()
    configs = "".join(f"- config_name: {c}\n  data_files: {c}.json\n" for c in ("german", "french"))
    (data / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for config in ("german", "french"):
        (data / f"{config}.json").write_text(f'{{"text": "in {config} "}}\n' * 30)
    source = hf(name=str(data), data_files=None, config="french")
    assert "in french \nin french" in texts(source)[0]
    with pytest.raises(ConfigError, match=r"cannot be loaded .*'german', 'french'.*data\.config"):
        hf(name=str(data), data_files=None)
    with pytest.raises(ConfigError, match=r"data\.config=french2 cannot be loaded .*french.*data\.config"):
        hf(name=str(data), data_files=None, config="french2")


OFFLINE = """
from lmxexp.data.hf import HuggingFace
from lmxexp.interfaces import ConfigError
from lmxexp.tokenizer.byte import ByteTokenizer
try:
    HuggingFace(ByteTokenizer, 8, 2, name="roneneldan/TinyStories")
except ConfigError as error:
    print(error)
"""


def test_without_a_network_there_is_one_message(tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "LMXEXP_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        check=True,
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": ":".join(p for p in sys.path if p)},
    )
    assert done.stdout.startswith(
        "data.name=roneneldan/TinyStories is not in the local cache and could not be downloaded"
    )
    assert done.stdout.count("\n") == 1
    assert "data=python_stdlib" in done.stdout
    assert done.stderr == ""


NO_NETWORK = """
import socket, sys

def nothing(*args, **kwargs):
    raise socket.gaierror(-2, "Name or service not known")

socket.getaddrinfo = nothing
from lmxexp.prepare import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("kind", ["fineweb_edu", pytest.param("wikitext", marks=pytest.mark.slow)])
def test_a_corpus_without_a_network_is_refused_at_once(tmp_path, kind):
    """The libraries alone would try again for 25 seconds."""
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment |= {"HF_HOME": str(tmp_path), "LMXEXP_CACHE": str(tmp_path)}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", NO_NETWORK, f"data={kind}"],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": ":".join(p for p in sys.path if p)},
        cwd=tmp_path,
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "available" not in line]
    assert line.startswith("lmxexp: error: data.name=")
    assert "could not be downloaded (huggingface.co has no address): check the network" in line
    assert time.monotonic() - began < 15


def test_datasets_is_imported_only_when_used():
    code = "import sys, lmxexp.data.hf, lmxexp.data.text; print('datasets' in sys.modules, 'pyarrow' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": ":".join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["False", "False"]


def test_defaults_of_the_class_match_those_of_the_yaml(tmp_path):
    """Used without Hydra it is the same source."""
    (tmp_path / "a.txt").write_text("text " * 50)
    assert HuggingFace(ByteTokenizer, 4, 2, path=str(tmp_path / "a.txt"), cache_dir=str(tmp_path)).seed == 0
