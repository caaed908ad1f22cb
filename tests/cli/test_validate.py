"""The signature is the schema. The classes below stand for a user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import pytest
from omegaconf import OmegaConf

import lmxexp
from lmxexp.cli.signature import Built, fits, locate, say
from lmxexp.cli.validate import check
from lmxexp.interfaces import ConfigError

if TYPE_CHECKING:
    from nowhere import Unknown


class Part:
    def __init__(
        self,
        d_model: int,
        n_heads: int,
        scale: float = 1.0,
        mode: Literal["a", "b"] = "a",
        betas: tuple[float, float] = (0.9, 0.95),
        inner: Callable | None = None,
        odd: Unknown = None,
    ): ...


class Open:
    def __init__(self, *, needed: str, **rest): ...


HERE = __name__


def configuration(**changes):
    """A configuration with every root; ``model.net`` is a `Part`."""
    cfg = OmegaConf.create(
        {
            "seed": 1,
            "tags": [],
            "resume": None,
            "size": {"heads": 2},
            "model": {
                "part": {"_target_": f"{HERE}.Part", "_partial_": True, "n_heads": "${size.heads}"},
                "net": "${model.part}",
                "init": {"_target_": "builtins.dict"},
            },
            **{k: {"_target_": "builtins.dict"} for k in ("optim", "schedule", "data", "tokenizer", "loss", "train")},
            "callback": None,
            "logger": None,
        }
    )
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    return cfg


def message(cfg, overrides=()) -> str:
    with pytest.raises(ConfigError) as raised:
        check(cfg, overrides)
    return str(raised.value)


def test_what_is_right_passes():
    check(configuration())
    check(configuration(model__part__scale=2, model__part__betas=[0.5, 1], model__part__mode="b"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size__heads": "abc"}, "size.heads=abc: expected int, got text (read by model.part.n_heads)"),
        ({"size__heads": 1.5}, "size.heads=1.5: expected int, got float"),
        ({"size__heads": True}, "size.heads=true: expected int, got bool"),
        ({"size__heads": None}, "size.heads=null: expected int, got null"),
        ({"size__heads": "???"}, "size.heads is missing: give it a value, size.heads=…"),
        (
            {"model__part__scal": 1.0},
            "model.part.scal: tests.cli.test_validate.Part has no setting scal; did you mean scale?",
        ),
        ({"model__part__mode": "c"}, "model.part.mode=c: expected one of a, b"),
        ({"model__part__betas": [0.9]}, "model.part.betas=[0.9]: expected a list of 2 (float, float)"),
        (
            {"model__part__inner": "gqa"},
            "model.part.inner=gqa: expected a component (a node with _target_) or null, got text",
        ),
        (
            {"model__part__scale": {"_target_": "builtins.dict"}},
            "model.part.scale: expected float, got a node with _target_",
        ),
        ({"model__part__n_heads": "${size.nope}"}, "size.nope is missing (read by model.part.n_heads)"),
        ({"optim": {"_target_": f"{HERE}.Open"}}, "optim.needed is missing: tests.cli.test_validate.Open needs it"),
        ({"optim": {"_target_": f"{HERE}.Opeen"}}, "cannot be imported: there is no Opeen in"),
        ({"optim": {"_target_": "nopackage.Class"}}, "cannot be imported: there is no module nopackage"),
        ({"optim": {"_target_": "Class"}}, "it takes a dotted name"),
        ({"loss": None}, "loss is missing: the run cannot do without it"),
        ({"seed": "x"}, "seed=x: expected int, got text"),
    ],
)
def test_each_mistake_is_told_under_the_key_where_it_is_written(changes, said):
    text = message(configuration(**changes)).replace(HERE, "tests.cli.test_validate")
    assert said in text
    assert "settings cannot work" not in text, "one mistake, one message"


def test_a_value_that_is_taken_by_keyword_and_one_that_nobody_can_judge_pass():
    check(configuration(optim={"_target_": f"{HERE}.Open", "needed": "x", "else": 1}, model__part__odd="anything"))


def test_all_mistakes_come_at_once():
    text = message(configuration(size__heads="abc", model__part__mode="c", seed="x", loss=None))
    assert text.startswith("4 settings cannot work:")
    assert all(key in text for key in ("size.heads=abc", "model.part.mode=c", "seed=x", "loss is missing"))


def test_a_broken_module_of_the_users_says_what_is_broken(tmp_path, monkeypatch):
    (tmp_path / "broken_kind.py").write_text("import numpy\nraise RuntimeError('out of luck')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "RuntimeError: out of luck" in message(configuration(optim={"_target_": "broken_kind.Kind"}))


def test_what_is_not_reached_is_not_checked():
    check(configuration(model__spare={"_target_": "no.such.Thing", "x": "???"}))


def test_a_list_of_nodes_is_checked():
    text = message(configuration(logger={"a": {"_target_": f"{HERE}.Open"}, "b": {"_target_": f"{HERE}.Opn"}}))
    assert "logger.a.needed is missing" in text
    assert "logger.b._target_" in text


def test_the_validator_knows_numbers_as_yaml_files_write_them():
    # PyYAML alone reads 1e-3 as a text.
    cfg = OmegaConf.create("x: 1e-3")
    assert fits(cfg.x, float)
    assert lmxexp.compose(["optim.learning_rate=1e-3"]).optim.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("value", "annotation", "fit"),
    [
        (1, float, True),
        (True, float, False),
        (1.0, int, False),
        ("a", str, True),
        (None, int | None, True),
        (None, int, False),
        ([1, 2], list[int], True),
        ([1, "a"], list[int], False),
        ([1, 2], Sequence[float], True),
        ("ab", Sequence[str], False),
        ([1, 2, 3], tuple[int, ...], True),
        ([1, 2, 3], tuple[int, int], False),
        ({"a": 1}, Mapping[str, int], True),
        ({"a": "b"}, Mapping[str, int], False),
        (1, Literal[1, 2], True),
        (True, Literal[1, 2], False),
        (Built(), Callable[..., int], True),
        (Built(), int | None, False),
        ("x", Callable | None, False),
        ({"a": Built()}, Mapping[str, Callable[..., int]], True),
        (None, Part, False),
    ],
)
def test_types(value, annotation, fit):
    assert fits(value, annotation) is fit
    assert say(annotation)


def test_locate_imports_what_is_nested():
    assert locate("pathlib.Path.cwd")() == locate("pathlib.Path").cwd()
    with pytest.raises(ImportError, match="nothing to call"):
        locate("math.pi")


@pytest.mark.parametrize("override", ["model=gpt", "model=llama"])
def test_our_own_configuration_passes(override):
    check(lmxexp.compose([override]), [override])
