"""The command that makes tokens, and what it prints."""

import io
import json
import re

import pytest

import lmxexp
from lmxexp.data import progress
from lmxexp.data.shards import Totals
from lmxexp.prepare import main, prepare

TEXT = "Grüße an alle, die das lesen.\n" * 100


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(TEXT)
    return ["data=text", "data.path=a.txt", f"data.cache_dir={tmp_path / 'cache'}"]


def test_it_makes_what_a_run_reads(settings, tmp_path, capsys):
    assert main(settings) == 0
    printed = capsys.readouterr()
    assert re.search(r"train +2,880 +1 +2,880 +1\.00", printed.out)
    assert re.search(r"validation +320 +1 +320 +1\.00", printed.out)
    assert f"ready in {tmp_path / 'cache'}/tokens after" in printed.out.replace("\n", " ")
    assert printed.err == ""
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.bin")}
    assert len(files) == 4  # of each split the tokens and the starts
    record = prepare(lmxexp.compose(settings))
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert (record["train_documents"], record["train_tokens"]) == (1, 2880)


def test_json(settings, capsys):
    assert main([*settings, "--json", "tokenizer=bpe", "tokenizer.vocab_size=300", "train.seq_len=8"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["vocab_size"] <= 300
    assert record["train_bytes"] == 2880
    assert record["seconds"] > 0


def test_generated_data_needs_none(capsys):
    assert main(["data=induction"]) == 0
    assert "there is nothing to prepare" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=txt"], r"data=txt: no such kind; did you mean text\?"),
        (["data=text", "data.path=nowhere.txt"], r"data\.path=nowhere\.txt does not exist"),
        (["data.streming=true"], r"data\.streming"),
    ],
)
def test_mistakes_are_one_line(capsys, overrides, message):
    assert main(overrides) == 1
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stderr", "after", "shown"), [(Terminal, 0, True), (Terminal, 60, False), (io.StringIO, 0, False)]
)
def test_a_bar_on_a_terminal_alone(monkeypatch, stderr, after, shown):
    monkeypatch.setattr(progress, "_AFTER", after)
    monkeypatch.setattr("sys.stderr", stderr())
    totals = Totals(check_lossless=False)

    def documents():
        raise AssertionError

    documents.total = 200
    with progress.Progress("train", documents, totals) as bar:
        for items in (50, 100):
            totals.count += 1_500_000
            totals.documents += 50
            bar(totals, {"items": items})
            bar(totals, None)
    import sys

    written = sys.stderr.getvalue()
    assert ("3.0M tokens of 100 documents" in written) is shown
    assert ("tokens, train" in written) is shown
    assert shown or written == ""
