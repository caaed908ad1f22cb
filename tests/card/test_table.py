"""The table, the files and the command."""

import csv
import json

import pytest
from matplotlib.image import imread

from lmxexp.card import plot, table
from lmxexp.card.__main__ import main
from lmxexp.card.read import read
from tests.card.sweep import Sweep, measured


@pytest.fixture
def path(tmp_path):
    """Two mixers, two seeds; linear has no copying and was not measured."""
    sweep = Sweep(tmp_path / "my_card")
    for seed in (1, 2):
        machine = {"backend": "cpu", "name": "EPYC", "cpu_cores": 2}
        sweep.add("mha", "lm", 1.0 + seed, seed=seed, speeds=measured(seed), device=machine)
        sweep.add("mha", "copying", 0.5, seed=seed)
        sweep.add("linear", "lm", 2.25, seed=seed)
    return sweep.path


def test_rows(path):
    head, mha, linear = table.rows(read([path]))
    assert head == [
        "mixer", "params", "lm loss", "copying %", "train tok/s @64", "train tok/s @1024",
        "decode tok/s @64", "decode tok/s @1024", "state bytes @1024", "peak GB @1024",
    ]  # fmt: skip
    # Means over the factors 1 and 2 of seeds 1 and 2.
    assert mha == [
        "mha", "1,003", "2.500 (2.000 to 3.000)", "50.0", "1,500 (1,000 to 2,000)", "93.8 (62.5 to 125)",
        "150 (100 to 200)", "9.38 (6.25 to 12.5)", "1,536 (1,024 to 2,048)", "6 (4 to 8)",
    ]  # fmt: skip
    assert linear == ["linear", "1,006", "2.250", *7 * ["-"]]


def test_one_length_is_one_column(tmp_path):
    sweep = Sweep(tmp_path / "s")
    sweep.add("mha", "lm", 1.0, speeds=measured(lengths=(64,)))
    head, _ = table.rows(read([sweep.path]))
    assert head[3:] == ["train tok/s @64", "decode tok/s @64", "state bytes @64", "peak GB @64"]


def test_the_table_lines_up(path):
    lines = table.aligned(table.rows(read([path]))).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len({tuple(i for i, c in enumerate(line) if c == "|") for line in lines}) == 1


def test_after_how_many_steps_the_scores_are_is_said(path, capsys):
    assert table.caveat(read([path])).startswith("Scores are after 300 steps. A low one says")
    sweep = Sweep(path.parent / "other")
    sweep.add("mha", "lm", 2.0, steps=250)
    sweep.add("mha", "copying", 0.5, steps=1000)
    said = table.caveat(read([sweep.path]))
    assert said.startswith("Scores are after 250 to 1,000 steps.")
    assert main([str(sweep.path)]) == 0
    assert said in capsys.readouterr().out
    assert said in (sweep.path / "card.md").read_text()


def test_the_command_writes_everything_and_says_what_is_missing(path, capsys):
    assert main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "linear: no run of task=copying" in out
    assert table.aligned(table.rows(read([path]))) in out
    markdown = (path / "card.md").read_text()
    assert "- linear: no run of task=copying" in markdown
    assert "\nMade by `python -m lmxexp -m of my_card`, measured on EPYC, 2 CPU cores.\n" in markdown
    for name in ("card_mha.png", "card_linear.png"):
        assert f"]({name})" in markdown
        assert imread(path / name).shape[:2] == (814, 1540)
    content = json.loads((path / "card.json").read_text())
    assert (content["commands"], content["machines"]) == (["python -m lmxexp -m of my_card"], ["EPYC, 2 CPU cores"])
    assert content["metrics"] == {"lm": "eval/loss", "copying": "eval/accuracy"}
    assert content["mixers"][0]["scores"]["lm"] == {"mean": 2.5, "min": 2.0, "max": 3.0, "n": 2}
    assert content["mixers"][0]["curves"]["state_bytes"]["64"] == {"mean": 96.0, "min": 64.0, "max": 128.0, "n": 2}
    assert len(content["mixers"][0]["runs"]) == 4
    rows = list(csv.DictReader((path / "card.csv").open()))
    assert [row["mixer"] for row in rows] == ["mha", "linear"]
    assert (rows[0]["lm/loss"], rows[0]["lm/loss/max"], rows[0]["copying/accuracy"]) == ("2.5", "3.0", "0.5")
    assert float(rows[0]["decode_tokens_per_s/1024"]) == pytest.approx(9.375)
    assert rows[1]["copying/accuracy"] == rows[1]["state_bytes/64"] == ""


def test_the_command_again_counts_no_file_of_its_own(path):
    assert main([str(path)]) == 0
    before = (path / "card.json").read_text()
    assert main([str(path), "--out", str(path / "again")]) == 0
    assert (path / "again" / "card.json").read_text() == before
    assert sorted(f.name for f in (path / "again").iterdir()) == [
        "card.csv", "card.json", "card.md", "card_linear.png", "card_mha.png"
    ]  # fmt: skip


def test_mistakes_are_one_line(path, capsys):
    assert main([str(path / "nowhere")]) == 1
    assert main([str(path), "--by", "atention"]) == 1
    err = capsys.readouterr().err
    assert "no such directory" in err
    assert "did you mean attention?" in err
    assert "Traceback" not in err


def test_pictures_show_the_figures(path):
    """What is drawn, read back from the axes."""
    card = read([path])
    figures = {}

    def keep(self, file, **_):
        figures[file.name] = self

    from matplotlib.figure import Figure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", keep)
        plot.write(card, path)
    assert set(figures) == {"card_mha.png", "card_linear.png"}
    accuracy, train, decode, losses, state, peak = figures["card_mha.png"].axes
    assert [bar.get_height() for bar in accuracy.patches] == [50.0]
    assert [label.get_text() for label in accuracy.get_xticklabels()] == ["copying"]
    for axes, name in ((train, "train_tokens_per_s"), (decode, "decode_tokens_per_s"), (state, "state_bytes"),
                       (peak, "train_peak_gb")):  # fmt: skip
        drawn = axes.lines[-1].get_xydata().tolist()
        assert drawn == [[n, s.mean] for n, s in card.mixers[0].curves[name].items()]
    assert [list(line.get_xdata()) for line in losses.lines] == [[2.0, 3.0], [2.5], [2.25, 2.25], [2.25]]
    assert [label.get_text() for label in losses.get_yticklabels()] == ["mha", "linear"]
    # Its own curve is missing: that is said, and mha's is there in grey.
    accuracy, train, *_ = figures["card_linear.png"].axes
    assert "no run" in [text.get_text() for text in accuracy.texts]
    assert "not measured" in [text.get_text() for text in train.texts]
    assert len(train.lines) == 1


@pytest.mark.parametrize(("value", "text"), [(0.25, "0.25"), (950, "950"), (12_000, "12k"), (3_400_000, "3.4M")])
def test_si(value, text):
    assert plot.si(value) == text


def test_files_are_named_apart():
    from lmxexp.card.read import Card, Mixer

    labels = ["mha", "attention=a/b x=1", "attention=a_b x=1"]
    card = Card([Mixer(label, {}, {}, None) for label in labels], {}, [])
    assert plot.names(card) == ["card_mha.png", "card_attention_a_b_x_1.png", "card_attention_a_b_x_1_2.png"]
