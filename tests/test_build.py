"""Nodes of a configuration that cannot become what they describe."""

import pytest

from lmxexp.build import build
from lmxexp.interfaces import ConfigError


def test_a_class_of_the_users_that_is_not_there():
    node = {"inner": {"_target_": "my_attention.MovingAverage", "_partial_": True}}  # as read back by lmxexp.load
    with pytest.raises(ConfigError, match=r"my_attention\.MovingAverage cannot .* of the file my_attention\.py"):
        build(node)


def test_a_class_of_the_users_that_raises(tmp_path, monkeypatch):
    """The directory is the right one: what is wrong is told instead."""
    (tmp_path / "broken_attention.py").write_text("import nothing_of_that_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be imported: ModuleNotFoundError.* 'nothing_of_that_name'$"):
        build({"_target_": "broken_attention.MovingAverage"})


def test_a_mistake_of_a_constructor_is_told_as_it_is():
    with pytest.raises(ConfigError, match=r"^betas="):
        build({"_target_": "lmxexp.optim.adamw.AdamW", "learning_rate": 1e-3, "betas": [0.9]})
