"""What was measured, written and read back."""

import json

from lmxexp.bench import report
from lmxexp.bench.measure import Spread
from lmxexp.bench.report import Peak, Report, Row


def made():
    measured = {"batch_size": 16, "seq_len": 128, "params": 852_352, "to_first_step_s": 1.5, "compile_s": 1.25}
    return Report(
        n_rounds=3,
        n_steps=4,
        date="2026-11-28T10:00:00+0000",
        command="python -m lmxexp.bench",
        machine={"name": "A CPU (R)", "backend": "cpu", "cpu": "A CPU (R)", "cpu_cores": 2, "memory_gb": 25.3},
        packages={"mlx": "0.32.4", "torch": None},
        blas={"kind": "openblas-scipy", "version": None, "threads": 1},
        peaks={"fp32": Peak({"256": 50.0, "512": 100.0})},
        rows=[
            Row("llama", "lmxexp", "fp32", step_s=Spread([0.2, 0.1, 0.3]), tokens_per_s=10240.0, mfu=0.25,
                flops_per_token=1, peak_gb=0.17, **measured),
            Row("llama", "torch eager", "fp32", step_s=Spread([0.4, 0.1, 0.3]), tokens_per_s=6826.0, mfu=0.2,
                flops_per_token=1, ratio=Spread([2.0, 1.0, 1.0]), note="a note", **measured),
            Row("jamba", "lmxexp", "fp32", reason="MemoryError: no room"),
        ],
        remarks=["mlx_lm: not installed"],
    )  # fmt: skip


def test_json_and_back():
    before = made()
    after = Report.from_json(json.loads(json.dumps(before.to_json())))
    assert after == before
    assert report.markdown(after) == report.markdown(before)


def test_markdown():
    text = report.markdown(made())
    assert "| llama | lmxexp | 200.0 (100.0 to 300.0) | 10,240 | 25.0% | 0.17 | 1.5 | 1.2 |  |" in text
    assert "| 300.0 (100.0 to 400.0) | 6,826 | 20.0% | - | 1.5 | 1.2 | 1.00 (1.00 to 2.00) |" in text
    assert "- jamba, lmxexp: not measured: MemoryError: no room" in text
    assert "- torch eager: a note" in text
    assert "- mlx_lm: not installed" in text
    assert "fp32 100 GFLOP/s (256: 50, 512: 100)" in text
    assert "--rounds 3: a trial" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {len(report.HEADINGS) + 1}


def test_files_are_never_written_over(tmp_path):
    first = report.save(made(), tmp_path / "new")
    second = report.save(made(), tmp_path / "new")
    assert [p.name for p in first] == ["2026-11-28-a-cpu-r.md", "2026-11-28-a-cpu-r.json"]
    assert [p.name for p in second] == ["2026-11-28-a-cpu-r-2.md", "2026-11-28-a-cpu-r-2.json"]
    assert report.load(first[1]) == made()
    assert first[0].read_text(encoding="utf-8") == report.markdown(made())


def test_the_console_shows_every_row(capsys):
    report.show(made())
    text = capsys.readouterr().out
    for word in ("lmxexp", "torch eager", "jamba", "no room", "not installed"):
        assert word in text
