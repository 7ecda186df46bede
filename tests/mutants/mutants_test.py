"""Every likely bug is caught, and the runner itself can tell."""

import dataclasses

import pytest

from tests.mutants import moe, run


def test_every_snippet_occurs_once():
    run.check_table([mutant for table in run.TABLES for mutant in table])


def test_a_snippet_that_is_gone_is_an_error():
    gone = dataclasses.replace(moe.MUTANTS[0], snippet="no such line")
    with pytest.raises(ValueError, match="snippet occurs 0 times"):
        run.check_table([gone])


@pytest.mark.slow
def test_all_are_caught(capsys):
    mutants = [mutant for table in run.TABLES for mutant in table]
    caught = run.run(mutants, num_jobs=2)
    assert caught, capsys.readouterr().out


@pytest.mark.slow
def test_a_harmless_change_and_a_broken_file_are_not_caught(capsys):
    first = moe.MUTANTS[0]
    harmless = dataclasses.replace(first, replacement=f"{first.snippet}  # the same")
    broken = dataclasses.replace(first, name="syntax error", replacement="(")
    assert not run.run([harmless, broken], num_jobs=2)
    out = capsys.readouterr().out
    assert "SURVIVED" in out and "BROKEN" in out and "0 of 2" in out
