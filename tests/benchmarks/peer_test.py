"""Peers of benchmarks: one that is missing, one that fails, one that answers."""

import subprocess
import sys

import pytest

from benchmarks import peer


def fake_python(tmp_path, script):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return str(python)


def test_a_package_that_is_not_there_is_no_peer():
    assert peer.run("any", {}, python=sys.executable, package="no_such_package") is None


def test_a_peer_that_fails_is_no_missing_peer(tmp_path):
    python = fake_python(tmp_path, 'test "$1" = -c && echo True && exit 0\necho broken >&2; exit 3')
    with pytest.raises(RuntimeError, match="any.peer ended with 3: broken"):
        peer.run("any.peer", {}, python=python, package="any")


def test_a_python_that_fails_is_no_missing_package(tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        peer.run("any", {}, python=fake_python(tmp_path, "exit 1"), package="any")


def test_what_a_peer_answers(tmp_path):
    script = 'test "$1" = -c && echo True && exit 0\ncp "$3" "$4"'
    found = peer.run("any", {"a": [1]}, python=fake_python(tmp_path, script), package="any")
    assert found == {"a": [1]}
