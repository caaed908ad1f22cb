"""What callback=speed measures, and that the run does not feel it."""

import json
import logging

import mlx.core as mx
import pytest

import lmxexp
from lmxexp import device
from lmxexp.callback import speed
from lmxexp.callback.memory import Memory
from lmxexp.callback.speed import Speed
from lmxexp.interfaces import ConfigError
from lmxexp.logger.jsonl import read_metrics
from lmxexp.model.language_model import LanguageModel

SMALL = ["model.d_model=16", "model.n_layers=2", "model.n_heads=2", "model.n_kv_heads=2", "data=mqar", "data.n_eval=4"]
SMALL += ["data.vocab_size=32", "data.n_pairs=2", "train.batch_size=2", "train.seq_len=16", "train.steps=3"]
SMALL += ["train.log_every=1", "train.eval_every=2", "train.checkpoint_every=0", "logger=[jsonl]"]
SMALL += ["train.precision=fp32"]
SMALL += ["train.compile=false"]  # compiling costs seconds; where it matters it is turned on
LENGTHS = ["callback.speed.lengths=[8,24]", "callback.speed.tokens=48", "callback.speed.decode_tokens=3"]


def run(directory, *overrides):
    return lmxexp.run(lmxexp.compose([*SMALL, *overrides]), directory)


def measured(result):
    """Length to value, by metric."""
    found = {}
    for name, value in read_metrics(result.run_dir / "metrics.jsonl")[-1].items():
        if name.startswith("speed/"):
            _, metric, length = name.split("/")
            found.setdefault(metric, {})[int(length)] = value
    return found


def test_one_line_has_every_metric_at_every_length(tmp_path):
    result = run(tmp_path, "attention=mha", "callback=[evaluate,speed]", *LENGTHS)
    found = measured(result)
    assert set(found) == {"train_tokens_per_s", "train_peak_gb", "decode_tokens_per_s", "state_bytes"}
    assert all(set(values) == {8, 24} and min(values.values()) > 0 for values in found.values())
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "speed/state_bytes/8" in line] == [3]


@pytest.mark.parametrize("how", ["train.compile=true", "train.precision=mixed"])
def test_the_run_is_the_same_bit_for_bit(tmp_path, how):
    """Measured before the last evaluation and checkpoint, with dropout, which draws random numbers."""
    settings = ["attention=mha", "model.dropout=0.3", how]
    without = run(tmp_path / "without", *settings, "callback=[evaluate,checkpoint]")
    with_speed = run(tmp_path / "with", *settings, "callback=[speed,evaluate,checkpoint]", *LENGTHS)
    assert measured(with_speed)
    lines = [read_metrics(r.run_dir / "metrics.jsonl") for r in (without, with_speed)]
    kept = [[{k: v for k, v in line.items() if not k.startswith("speed/")} for line in of_run] for of_run in lines]
    assert len(kept[0]) == 3
    assert kept[0] == kept[1]
    steps = [next((r.run_dir / "checkpoints").glob("step_*3")) for r in (without, with_speed)]
    states = [json.loads((step / "state.json").read_text())["state"] for step in steps]
    assert states[0]["random_state"] == states[1]["random_state"]
    for name in ("model", "optimizer"):
        a, b = (mx.load(str(step / f"{name}.safetensors")) for step in steps)
        assert a.keys() == b.keys()
        assert all(mx.array_equal(a[k], b[k]) for k in a)


def test_the_run_s_own_peak_is_not_the_measurement_s(tmp_path):
    settings = ["attention=mha", "callback.speed.lengths=[16,1024]", "callback.speed.tokens=1024"]
    result = run(tmp_path, *settings, "callback=[speed,memory]")
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert measured(result)["train_peak_gb"][1024] > 5 * lines[-1]["mem/peak_gb"]
    # The last reading comes after the measurement.
    assert lines[-1]["mem/peak_gb"] == pytest.approx(lines[-2]["mem/peak_gb"], rel=0.1)


def test_who_comes_next_finds_the_model_in_training(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Memory, "__call__", lambda self, trainer: seen.append(trainer.model.training) or {})
    run(tmp_path, "attention=mha", "train.steps=1", "callback=[speed,memory]", *LENGTHS)
    assert seen == [True]


def test_a_peak_of_its_own():
    device.reset_peak_memory()
    a = mx.zeros(1_000_000)
    mx.eval(a)
    before = device.peak_memory_gb()
    with device.own_peak():
        b = mx.zeros(5_000_000)
        mx.eval(b)
        assert device.peak_memory_gb() > before + 0.015
        del b
        device.clear_cache()  # or the next array gets its buffer, which is larger than it needs
        device.reset_peak_memory()
        assert device.peak_memory_gb() < before + 0.015
    assert device.peak_memory_gb() == before
    c = mx.zeros(3_000_000)
    mx.eval(c)
    assert device.peak_memory_gb() == pytest.approx(before + 0.012, rel=0.01), "the run's peak goes on"
    del a, c
    device.reset_peak_memory()
    assert device.peak_memory_gb() < before


@pytest.mark.parametrize("attention", ["mha", "mamba2", "hybrid_head", "sliding"])
def test_state_bytes_are_those_of_the_cache(tmp_path, attention):
    result = run(tmp_path, f"attention={attention}", "callback=[speed]", *LENGTHS)
    model = lmxexp.build_model(lmxexp.compose([*SMALL, f"attention={attention}"]), vocab_size=32)
    assert measured(result)["state_bytes"] == {n: 4 * model.state_size(n) for n in (8, 24)}


def test_mixed_precision_decodes_in_half_the_bytes(tmp_path):
    result = run(tmp_path, "attention=mha", "train.precision=mixed", "callback=[speed]", *LENGTHS)
    # 2 layers, keys and values, 16 wide, 2 bytes each.
    assert measured(result)["state_bytes"] == {n: 2 * 2 * 16 * n * 2 for n in (8, 24)}


def test_what_is_timed(tmp_path, monkeypatch):
    """Shapes, modes and medians, by a clock that says 5, 1, 2, 3, … seconds."""
    seen, clock = [], iter([5.0, *range(1, 1000)])

    def hidden(self, tokens, **kwargs):
        seen.append((self.training, tokens.shape, kwargs.get("cache") is not None))
        return original(self, tokens, **kwargs)

    def seconds(work):
        work()
        return next(clock)

    original = LanguageModel.hidden
    settings = ["attention=mha", "callback.speed.repeats=3", "train.steps=1"]
    cfg = lmxexp.compose([*SMALL, *settings, "callback=[speed]", "callback.speed.lengths=[8]", *LENGTHS[1:]])
    monkeypatch.setattr(LanguageModel, "hidden", hidden)
    monkeypatch.setattr(speed, "_seconds", seconds)
    found = measured(lmxexp.run(cfg, tmp_path))
    # The step of the run; 48 tokens in rows of 8, once to warm up and three times; the prompt, 2 tokens before the
    # clock counts, 3 that count.
    assert seen == [(True, (2, 16), False)] + 4 * [(True, (6, 8), False)] + [(False, (1, 8), True)] + 5 * [
        (False, (1, 1), True)
    ]
    assert found["train_tokens_per_s"] == {8: 48 / 2}
    assert found["decode_tokens_per_s"] == {8: pytest.approx(1 / 6)}  # of 3, 4 | 5, 6, 7 seconds


def test_lengths_beyond_the_positions_are_skipped_with_a_note(tmp_path, caplog):
    settings = ["attention=mha", "position=learned", "position.embedding.max_len=24"]
    with caplog.at_level(logging.WARNING):
        found = measured(run(tmp_path, *settings, "callback=[speed]", *LENGTHS[1:], "callback.speed.lengths=[8,24,32]"))
    assert set(found["train_tokens_per_s"]) == {8, 24}
    assert set(found["decode_tokens_per_s"]) == {8}
    assert "not measured: decoding at 24, training at 32, decoding at 32: the model has positions for 24" in caplog.text


def test_a_measurement_that_fails_costs_no_run(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("[malloc] Unable to allocate\nso much")

    monkeypatch.setattr(Speed, "_training", fail)
    with caplog.at_level(logging.WARNING):
        result = run(tmp_path, "attention=mha", "callback=[evaluate,speed]", *LENGTHS)
    assert result.status == "ok"
    assert set(measured(result)) == {"decode_tokens_per_s", "state_bytes"}
    assert "not measured: training at 8, training at 24: [malloc] Unable to allocate so much" in caplog.text


def test_lengths_beyond_the_memory_limit_are_skipped_with_a_note(tmp_path, caplog):
    lengths = ["callback.speed.lengths=[16,512,1024]", "callback.speed.tokens=16", "callback=[memory,speed]"]
    peak = run(tmp_path / "free", "attention=mha", *lengths).summary["mem/peak_gb"]
    with caplog.at_level(logging.WARNING):
        result = run(tmp_path / "bounded", "attention=mha", *lengths, f"train.memory_limit_gb={2 * peak}")
    assert set(measured(result)["train_peak_gb"]) == {16, 512}, "known to be too much when it was measured"
    assert set(measured(result)["decode_tokens_per_s"]) == {16, 512, 1024}
    assert result.status == "ok"
    assert "not measured: training at 1024: shorter ones took" in caplog.text
    assert "(train.memory_limit_gb)" in caplog.text


def test_a_signal_during_the_measurement_stops_the_run_and_it_is_made_up_for(tmp_path, monkeypatch):
    def asked_to_stop(self, trainer, length):
        trainer.signals.received = 15
        return {"train_tokens_per_s": 1.0, "train_peak_gb": 1.0}

    settings = ["attention=mha", "callback=[evaluate,speed,checkpoint]", *LENGTHS]
    with monkeypatch.context() as patch:
        patch.setattr(Speed, "_training", asked_to_stop)
        assert run(tmp_path, *settings).status == "stopped"
    assert not any("speed/train_tokens_per_s/8" in line for line in read_metrics(tmp_path / "metrics.jsonl"))
    cfg = lmxexp.compose([*SMALL, *settings])
    cfg.resume = str(tmp_path)
    result = lmxexp.run(cfg)
    assert (result.status, result.summary["step"]) == ("ok", 3)
    assert set(measured(result)["decode_tokens_per_s"]) == {8, 24}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lengths": []}, r"callback\.speed\.lengths=\[\] must be different lengths of at least 2"),
        ({"lengths": [8, 1]}, r"callback\.speed\.lengths=\[8,1\] must"),
        ({"lengths": [8, 8]}, r"callback\.speed\.lengths=\[8,8\] must"),
        ({"tokens": 0}, r"callback\.speed\.tokens=0 must be at least 1"),
        ({"decode_tokens": 0}, r"callback\.speed\.decode_tokens=0 must be at least 1"),
        ({"repeats": 0}, r"callback\.speed\.repeats=0 must be at least 1"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ConfigError, match=message):
        Speed(**{"lengths": [8], "tokens": 8, "decode_tokens": 1, "repeats": 1, **settings})
