"""Peers do the same work, and what does not is told."""

import dataclasses

import numpy as np
import pytest

from lmxexp.bench import peers
from lmxexp.bench.own import OwnStep
from tests.bench.small import small
from tests.bench.test_suite import measured


def task(*overrides, **options):
    (case,) = small(*overrides, **{"precision": ["fp32"], **options})
    own = OwnStep(case.cfg, case.vocab_size)
    assert peers.unsupported(case.cfg, own) is None
    return own, peers.task_of(case.cfg, own, n_steps=8)


def makers(peer):
    pytest.importorskip(peers.PACKAGES[peer])
    return peers.makers(peer)


@pytest.mark.parametrize("peer", ["torch", "mlx_lm", "lmxlab"])
@pytest.mark.parametrize(
    "overrides",
    [[], ["attention=mha", "model.d_ff=48", "train.max_grad_norm=0.1"], ["schedule.warmup_steps=3", "schedule=cosine"]],
)
def test_the_same_model_and_training(peer, overrides):
    name, make = next(iter(makers(peer).items()))
    own, work = task(*overrides)
    batch = work.source.batch(0)
    contestant = make(work)
    assert contestant.name == name
    assert contestant.n_params() == own.n_params()
    assert contestant.loss(batch) == pytest.approx(own.loss(batch), abs=1e-4)
    peers.check_same_model(contestant, work)
    turns = [contestant.turn(n, iter(range(9)).__next__) for n in (1, 2)]
    losses = [loss for turn in turns for loss in turn.losses][:3]
    peers.check_same_steps(losses, own.run(3), "fp32")


@pytest.mark.parametrize("peer", ["torch", "mlx_lm", "lmxlab"])
def test_another_loss_is_no_peer(peer):
    make = next(iter(makers(peer).values()))
    _, work = task("position.attention.fraction=0.5")  # which a task cannot say
    with pytest.raises(peers.Disagreement, match="not the same model: loss"):
        peers.check_same_model(make(work), work)


@pytest.mark.parametrize("peer", ["torch", "mlx_lm", "lmxlab"])
@pytest.mark.parametrize("change", [{"peak_rate": 2e-3}, {"max_grad_norm": None, "eps": 1.0}])
def test_another_optimizer_is_no_peer(peer, change):
    make = next(iter(makers(peer).values()))
    own, work = task()
    contestant = make(dataclasses.replace(work, **change))
    losses = [loss for n in (1, 2) for loss in contestant.turn(n, float).losses][:3]
    with pytest.raises(peers.Disagreement, match="not the same training: loss"):
        peers.check_same_steps(losses, own.run(3), "fp32")


def test_more_parameters_are_no_peer():
    _, work = task()
    other, _ = task("model.d_ff=48")
    with pytest.raises(peers.Disagreement, match=r"not the same model: .* parameters"):
        peers.check_same_model(other, work)


def test_the_comparison_leaves_the_weights_as_they_were():
    own, work = task()
    peers.check_same_model(own, work)
    assert all(np.array_equal(a, work.weights[name]) for name, a in own.fp32_weights().items())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("attention=mla", "no attention=mla"),
        ("optim=muon", "no optim=muon"),
        ("model.dropout=0.1", "no model.dropout=0.1"),
        ("train.n_micro=2", "no train.n_micro=2"),
        ("init=mup", "no init=mup"),
    ],
)
def test_what_no_peer_does(override, message):
    (case,) = small(override)
    assert message in peers.unsupported(case.cfg, OwnStep(case.cfg, case.vocab_size))


def test_torch_is_measured_beside_lmxexp(monkeypatch):
    make = makers("torch")["torch eager"]
    monkeypatch.setattr(peers, "makers", lambda peer: {"torch eager": make})
    own, torch = measured(small(precision=["fp32"]), ["torch"]).rows
    assert torch.reason is None
    expected = [t / o for t, o in zip(torch.step_s.rounds, own.step_s.rounds, strict=True)]
    assert torch.ratio.rounds == expected
    assert torch.params == own.params
    assert own.ratio is None


def test_a_peer_that_disagrees_has_no_ratio(monkeypatch):
    make = makers("torch")["torch eager"]
    wrong = lambda work: make(dataclasses.replace(work, peak_rate=1e-2))
    monkeypatch.setattr(peers, "makers", lambda peer: {"torch eager": wrong})
    own, torch = measured(small(precision=["fp32"]), ["torch"]).rows
    assert own.step_s is not None
    assert "not the same training" in torch.reason
    assert torch.step_s is None
    assert torch.ratio is None


def test_bf16_is_measured_with_a_note(monkeypatch):
    make = makers("torch")["torch eager"]
    monkeypatch.setattr(peers, "makers", lambda peer: {"torch eager": make})
    _, torch = measured(small(precision=["bf16"]), ["torch"]).rows
    assert torch.reason is None
    assert "state is bf16" in torch.note
