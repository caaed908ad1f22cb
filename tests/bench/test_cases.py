"""From options and overrides to cases; what is refused."""

import pytest

from lmxexp import device
from lmxexp.bench.cases import cases_of
from lmxexp.interfaces import ConfigError
from tests.bench.small import small


def test_options_make_a_grid():
    cases = cases_of(attention=["gqa", "mla"], optim=["adamw", "muon"], precision=["fp32"], size=["tiny"])
    assert [case.name for case in cases] == [
        f"llama size=tiny attention={attention} optim={optim} fp32"
        for attention in ("gqa", "mla")
        for optim in ("adamw", "muon")
    ]
    assert {case.vocab_size for case in cases} == {256}


def test_the_device_says_what_is_usual(monkeypatch):
    monkeypatch.setattr(device, "is_gpu", lambda: False)
    (case,) = cases_of()
    assert (case.cfg.choice.size, case.cfg.train.batch_size, case.cfg.train.seq_len) == ("tiny", 16, 128)
    assert case.precision == "fp32"
    monkeypatch.setattr(device, "is_gpu", lambda: True)
    (case,) = cases_of()
    assert (case.cfg.choice.size, case.cfg.train.batch_size, case.cfg.train.seq_len) == ("124m", 32, 1024)
    assert (case.precision, case.vocab_size) == ("mixed", 50257)


def test_overrides_say_it_too():
    (case,) = cases_of(["size=10m", "train.batch_size=3", "attention=mla", "schedule=cosine"])
    assert (case.cfg.choice.size, case.cfg.train.batch_size, case.cfg.choice.attention) == ("10m", 3, "mla")
    assert case.cfg.schedule.warmup_steps is None


def test_auto_is_not_measured_twice(monkeypatch):
    monkeypatch.setattr(device, "is_gpu", lambda: False)
    assert [case.precision for case in small(precision=["auto", "fp32", "bf16"])] == ["fp32", "bf16"]


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        ([], {"attention": ["gqqa"]}, "attention=gqqa.*did you mean gqa"),
        ([], {"precision": ["fp16"]}, "--precision=fp16 must be one of auto, fp32, bf16, mixed"),
        ([], {"batch_size": 0}, "--batch-size=0 must be at least 1"),
        (["size=10m"], {"size": ["tiny"]}, "--size and the override model/size both say it"),
        (["data=mqar"], {}, "data=mqar: tokens are random here"),
        (["train.steps=3"], {}, "train.steps=3: the training step alone is measured"),
        (["callback=[]"], {}, "does not read callback"),
        (["optm=muon"], {}, "optm=muon: no such group; did you mean optim"),
    ],
)
def test_refused(overrides, options, message):
    with pytest.raises(ConfigError, match=message):
        cases_of(overrides, **options)
