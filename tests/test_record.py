"""A run's record of code, packages and machine."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version

import pytest

from lmxexp import blas, record
from lmxexp.record import environment_record, git_state


def git(directory, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_git(repository):
    commit = git(repository, "rev-parse", "HEAD")
    assert len(commit) == 40
    assert git_state(repository) == {"commit": commit, "dirty": False, "untracked": 0}
    (repository / "new.py").write_text("2")
    assert git_state(repository) == {"commit": commit, "dirty": False, "untracked": 1}
    (repository / "code.py").write_text("3")
    assert git_state(repository) == {"commit": commit, "dirty": True, "untracked": 1}
    git(repository, "add", "code.py")
    folder = repository / "below"
    folder.mkdir()
    assert git_state(folder) == {"commit": commit, "dirty": True, "untracked": 1}


def test_git_before_the_first_commit(tmp_path):
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) == {"commit": None, "dirty": False, "untracked": 0}


def test_no_repository_no_git_no_answer(tmp_path, repository, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setenv("GIT_DIR", str(elsewhere / "none"))
    assert git_state(elsewhere) is None
    monkeypatch.delenv("GIT_DIR")
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    assert git_state(repository) is None
    if os.name == "posix":
        monkeypatch.setattr(record, "GIT_TIMEOUT_S", 0.2)
        (tools / "git").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
        (tools / "git").chmod(0o755)
        assert git_state(repository) is None


def test_record(repository, monkeypatch):
    monkeypatch.chdir(repository)
    argv = ["/some/where/lmxexp/__main__.py", "model=llama", "name=two words"]
    made = environment_record(argv)
    text = json.dumps(made)
    assert json.loads(text) == made
    assert len(text) < 4000
    assert made["command"] == "python -m lmxexp model=llama 'name=two words'"
    assert made["git"]["commit"] == git(repository, "rev-parse", "HEAD")
    assert made["packages"]["mlx"] == version("mlx")
    assert set(made["packages"]) >= {"lmxexp", "hydra-core", "omegaconf", "wandb", "datasets", "numpy", "tokenizers"}
    assert made["device"]["python"] == platform.python_version()
    assert made["blas"]["kind"] == blas.which().kind
    if len(platform.node()) > 8:  # a shorter one may be part of another word
        assert platform.node() not in text


def test_command_of_a_console_script():
    assert environment_record(["/usr/local/bin/lmxexp", "seed=2"])["command"] == "lmxexp seed=2"
    assert environment_record([])["command"] == ""


def test_home_is_not_named(monkeypatch):
    path = blas.which().path
    if sys.platform != "linux" or path is None:
        pytest.skip("no BLAS library has a path here")
    monkeypatch.setenv("HOME", os.path.dirname(path))
    assert environment_record([])["blas"]["path"] == "~/" + os.path.basename(path)


def test_a_command_of_a_package_below_is_named_by_all_of_its_path(tmp_path):
    below = tmp_path / "outer" / "inner"
    below.mkdir(parents=True)
    for package in (below, below.parent):
        (package / "__init__.py").touch()
    assert record.command_line([str(below / "__main__.py"), "a b"]) == "python -m outer.inner 'a b'"
    assert record.command_line([str(below.parent / "__main__.py")]) == "python -m outer"
