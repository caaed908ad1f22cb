import os

import pytest

from lmxexp.cli import arguments


@pytest.mark.parametrize(
    ("typed", "ordered"),
    [
        ("model=llama -m attention=a,b", "model=llama attention=a,b -m"),
        ("--info attention=gqa", "attention=gqa --info"),
        ("--info defaults seed=1", "seed=1 --info defaults"),
        ("-c job ~x seed=1", "~x seed=1 --cfg job"),
        ("--cfg=job seed=1 --resolve", "seed=1 --cfg job --resolve"),
        ("-cn other a=1 -p model", "a=1 --config-name other --package model"),
        ("--cfg", "--cfg"),
    ],
)
def test_overrides_go_before_the_flags(typed, ordered):
    assert arguments.read(typed.split()).argv() == ordered.split()


def test_configuration_directories_become_absolute():
    line = arguments.read(["--config-dir", "mine", "-cp=other"])
    assert line.values == {"--config-dir": os.path.abspath("mine"), "--config-path": os.path.abspath("other")}
    assert arguments.read(["-cp", "pkg://x.conf"]).config_path == "pkg://x.conf"


@pytest.mark.parametrize(
    ("typed", "runs"),
    [("a=1", True), ("a=1 -m", True), ("-c job", False), ("--info", False), ("-sc query=bash", False)],
)
def test_what_runs(typed, runs):
    assert arguments.read(typed.split()).runs is runs


def test_completion_knows_the_directories_of_the_line_being_typed():
    line = arguments.of_completion(arguments.read(["-sc", "query=bash"]), "lmxexp --config-dir /x/y attention=")
    assert line.argv() == ["query=bash", "-sc", "--config-dir", "/x/y"]
    assert arguments.of_completion(arguments.read(["-sc"]), "lmxexp 'open").argv() == ["-sc"]
