"""Preference files: every kind of bad line by hand; a split without a dialogue on both sides."""

import gzip
import json
import os

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from deepseek_jax.data import given, preferences
from deepseek_jax.data.preferences import Leaks, Preference

needs_data = pytest.mark.skipif(
    given.FOLDER_VARIABLE not in os.environ, reason=f"{given.FOLDER_VARIABLE} is not set"
)


def dialogue(question, *turns):
    """A dialogue of one question, and of replies and questions in turn."""
    heads = ("\n\nAssistant: ", "\n\nHuman: ")
    return f"\n\nHuman: {question}" + "".join(heads[i % 2] + turn for i, turn in enumerate(turns))


def line(chosen, rejected, **others):
    return json.dumps({"chosen": chosen, "rejected": rejected, **others}).encode()


GOOD = line(dialogue("why?", "so"), dialogue("why?", "no"))


def read(tmp_path, *lines, blank="error", equal="error", name="pairs.jsonl"):
    path = tmp_path / name
    content = b"\n".join(lines)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return preferences.read(path, blank=blank, equal=equal)


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_pairs_know_their_lines(tmp_path, name, end):
    other = line(dialogue("how?", "thus"), dialogue("how?", "caf\u00e9"), note=1)
    found = read(tmp_path, GOOD, other + end, name=name)
    assert found.pairs == [
        Preference(1, "\n\nHuman: why?\n\nAssistant: so", "\n\nHuman: why?\n\nAssistant: no"),
        Preference(2, "\n\nHuman: how?\n\nAssistant: thus", dialogue("how?", "caf\u00e9")),
    ]
    assert (found.left_out, found.num_lines) == ({}, 2)


def test_the_hash_is_that_of_the_content(tmp_path):
    plain = read(tmp_path, GOOD, GOOD)
    assert read(tmp_path, GOOD, GOOD, name="x.jsonl.gz").sha256 == plain.sha256
    assert read(tmp_path, GOOD).sha256 != plain.sha256


BAD = {
    "nothing": (b"", "does not parse"),
    "cut": (GOOD[:-4], "does not parse"),
    "NaN of a list": (b"[" * 3, "does not parse"),
    "with a mark of its byte order": (b"\xef\xbb\xbf" + GOOD, "does not parse .*BOM"),
    "list": (b'["chosen", "rejected"]', "holds list; expected a JSON object"),
    "one side": (b'{"chosen": "a"}', r"has only the fields \['chosen'\]"),
    "number": (b'{"chosen": "a", "rejected": 3}', "'rejected' holds int"),
    "null": (b'{"chosen": null, "rejected": "a"}', "'chosen' holds NoneType"),
    "lone surrogate": (
        rb'{"chosen": "a \ud800", "rejected": "a"}',
        "'chosen' holds a lone surrogate",
    ),
    "Latin-1": (GOOD.replace(b"so", b"caf\xe9"), r"byte 45 of the line \(0xe9\) is not UTF-8"),
    "UTF-16": (GOOD.decode().encode("utf-16"), r"byte 0 of the line \(0xff\) is not UTF-8"),
    "empty": (line("", dialogue("why?", "no")), "'chosen' has no text; pairs.blank="),
    "blank": (line(dialogue("why?", "no"), " \n\t"), "'rejected' has no text; pairs.blank="),
    "no last reply": (
        line(dialogue("why?", "no"), dialogue("why?", "no", "why?", " ")),
        "the last reply of 'rejected' has no text; pairs.blank=",
    ),
    "no reply": (
        line(dialogue("why?", "no"), "\n\nHuman: why?"),
        r"'rejected' has no reply; expected turns that begin with \"\\n\\nAssistant:\"",
    ),
    "equal": (
        line(dialogue("why?", "no"), dialogue("why?", "no")),
        "'chosen' and 'rejected' are the same; pairs.equal=",
    ),
    "equal but for blanks": (
        line(dialogue("why?", "no"), dialogue("why?", "no\n ")),
        "'chosen' and 'rejected' are the same; pairs.equal=",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_is_named(tmp_path, kind):
    bad, message = BAD[kind]
    with pytest.raises(ValueError, match=r"pairs\.jsonl:2: " + message):
        read(tmp_path, GOOD, bad, GOOD)


def test_what_is_left_out_is_listed_by_reason(tmp_path):
    blank, equal = BAD["no last reply"][0], BAD["equal"][0]
    lines = (blank, GOOD, equal, GOOD, blank)
    found = read(tmp_path, *lines, blank="leave_out", equal="leave_out")
    assert found.left_out == {"blank": [1, 5], "equal": [3]}
    assert [pair.line for pair in found.pairs] == [2, 4] and found.num_lines == 5
    with pytest.raises(ValueError, match=r"pairs\.jsonl:3: 'chosen' and 'rejected' are the same"):
        read(tmp_path, *lines, blank="leave_out")
    with pytest.raises(ValueError, match=r"pairs\.jsonl:1: the last reply of 'rejected' has no"):
        read(tmp_path, *lines, equal="leave_out")


def test_a_broken_gzip_file_is_named(tmp_path):
    path = tmp_path / "pairs.jsonl.gz"
    for content in (gzip.compress(GOOD)[:-9], GOOD, gzip.compress(GOOD)[:20] + b"\x00" * 30):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"pairs\.jsonl\.gz: not a whole gzip file"):
            preferences.read(path, blank="error", equal="error")


def test_where_the_file_is(tmp_path, monkeypatch):
    monkeypatch.delenv("DEEPSEEK_JAX_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="files.pairs=None: DEEPSEEK_JAX_DATA is not set"):
        preferences.locate(None)
    monkeypatch.setenv("DEEPSEEK_JAX_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such file; set the environment variable"):
        preferences.locate(None)
    path = tmp_path / "hh_rlhf" / "harmless-base-test.jsonl.gz"
    path.parent.mkdir()
    path.write_bytes(b"")
    assert preferences.locate(None) == preferences.locate(str(path)) == path
    with pytest.raises(FileNotFoundError, match=r"files\.pairs='other\.jsonl': no such file"):
        preferences.locate("other.jsonl")
    with pytest.raises(ValueError, match=r"must be a \.jsonl or \.jsonl\.gz file"):
        preferences.locate("pairs.parquet")


def pairs_of(*sides):
    return [Preference(i, *side) for i, side in enumerate(sides, start=1)]


def test_continuations_of_a_conversation_are_one_group():
    first = (dialogue("why?", "so"), dialogue("why?", "no"))
    later = (dialogue("why?", "so", "and then?", "x"), dialogue("why?", "so", "and then?", "y"))
    spelled = (dialogue("WHY ?!", "1"), dialogue(" WHY!", "2"))
    turned = first[::-1]
    other = (dialogue("why not?", "so"), dialogue("why not?", "no"))
    ids = preferences.groups(pairs_of(first, other, later, spelled, turned, first)).tolist()
    assert ids[0] == ids[2] == ids[3] == ids[4] == ids[5] != ids[1]
    assert sorted(set(ids)) == [0, 1]


def test_sides_that_open_differently_join_their_groups():
    def pair(a, b):
        return dialogue(a, "1"), dialogue(b, "2")

    listed = pairs_of(
        pair("a", "a"), pair("d", "d"), pair("c", "d"), pair("b", "a"), pair("d", "b")
    )
    assert preferences.groups(listed).tolist() == [0] * 5
    assert sorted(preferences.groups(listed[:4]).tolist()) == [0, 0, 1, 1]
    assert preferences.groups(pairs_of((dialogue("x", "1"), dialogue("y", "2")))).tolist() == [0]


QUESTIONS = st.sampled_from(["a", "b", " B!", "c c", "c - C", "d", "e", "?"])
TURNS = st.lists(st.sampled_from(["x", "y", "z"]), min_size=1, max_size=3)


@hypothesis.given(
    questions=st.lists(st.tuples(QUESTIONS, QUESTIONS, TURNS, TURNS), min_size=2, max_size=20),
    fraction=st.floats(0.05, 0.95),
    data=st.data(),
)
def test_no_opening_is_on_both_sides_whatever_the_order(questions, fraction, data):
    listed = pairs_of(
        *(
            (dialogue(first, *turns), dialogue(second, *others))
            for first, second, turns, others in questions
        )
    )
    ids = preferences.groups(listed)
    num_groups = len(np.unique(ids))
    hypothesis.assume(num_groups > 1)
    is_heldout = preferences.split(ids, heldout_fraction=fraction)
    sides = [
        [text for i in np.flatnonzero(mask) for text in listed[i][1:]]
        for mask in (~is_heldout, is_heldout)
    ]
    assert all(sides) and preferences.leaks(*sides) == Leaks(0, 0)
    share = len(np.unique(ids[is_heldout])) / num_groups
    assert abs(share - fraction) <= 1.0 / num_groups
    order = data.draw(st.permutations(range(len(listed))))
    again = preferences.groups([listed[i] for i in order])
    np.testing.assert_array_equal(again, ids[np.array(order)])


def test_a_leak_is_counted():
    ours = [dialogue("a", "1"), dialogue("b", "2"), dialogue("c", "3")]
    theirs = [dialogue("A ", "4"), dialogue("b", "2"), dialogue("d", "3")]
    assert preferences.leaks(ours, theirs) == Leaks(openings=2, texts=1)


def test_one_opening_cannot_be_split():
    with pytest.raises(ValueError, match="3 pairs of 1 dialogue openings: at least two openings"):
        preferences.split(np.zeros(3, np.int64), heldout_fraction=0.5)


@needs_data
def test_hh_rlhf_is_read_whole():
    found = preferences.read(preferences.locate(None), blank="leave_out", equal="error")
    assert (found.num_lines, len(found.pairs)) == (2312, 2308)
    assert [len(lines) for lines in found.left_out.values()] == [4]
    assert len(np.unique(preferences.groups(found.pairs))) < len(found.pairs) - 100
