"""Laws of the corpus: nothing twice, nothing lost, a split that no order or path can change."""

import json
import random

import hypothesis
import hypothesis.strategies as st
import pytest

from deepseek_jax.data import corpus, documents, record, sources
from deepseek_jax.data.documents import Document

TEXTS = st.text(alphabet="ab \n", max_size=6)


@st.composite
def found(draw):
    texts = draw(st.lists(TEXTS, min_size=1, max_size=12))
    num_groups = draw(st.integers(1, 6))
    members = [
        Document(f"d{i}", f"g{draw(st.integers(1, num_groups))}", "text", text)
        for i, text in enumerate(texts)
    ]
    return sources.Found(members, [])


def built(found, **settings):
    return corpus.build(
        found, source="folder", **{"max_bytes": None, "heldout_fraction": 0.3, **settings}
    )


@hypothesis.given(found(), st.integers(0, 100), st.integers(1, 20) | st.none())
def test_laws(case, seed, max_bytes):
    shuffled = list(case.documents)
    random.Random(seed).shuffle(shuffled)
    try:
        one = built(case, max_bytes=max_bytes)
    except ValueError as error:
        hypothesis.event(str(error).split(":")[0])
        with pytest.raises(ValueError, match="corpus"):
            built(sources.Found(shuffled, []), max_bytes=max_bytes)
        return
    assert one == built(sources.Found(shuffled, []), max_bytes=max_bytes)
    kept = one.train + one.heldout
    # Every document is kept or counted, none twice.
    num_excluded = sum(count.num_documents for count in one.record.excluded.values())
    assert len(kept) + num_excluded == len(case.documents)
    assert len({documents.normalized_digest(d.text) for d in kept}) == len(kept)
    assert one.train and one.heldout
    assert not {d.group for d in one.train} & {d.group for d in one.heldout}
    if max_bytes is not None:
        sizes = [documents.byte_count(d) for d in kept]
        if "max_bytes" in one.record.excluded:
            assert sum(sizes) >= max_bytes
        assert sum(sizes) - max(sizes) < max_bytes


def numbered(num_documents):
    return [Document(f"d{i}", f"g{i}", "text", f"text {i}") for i in range(num_documents)]


def test_exact_counts():
    # 10 texts of 6 bytes; 20% of 10 groups are 2.
    members = numbered(10)
    members += [
        Document("twin", "g0", "text", "text 3  \r\n"),
        Document("blank", "g0", "text", " "),
    ]
    one = built(sources.Found(members, []), heldout_fraction=0.2)
    assert (len(one.train), len(one.heldout)) == (8, 2)
    assert one.record.num_groups == 10
    assert one.record.kept["train/text"].num_documents == 8
    assert one.record.excluded["empty"] == record.Count(num_documents=1, num_bytes=1)
    assert one.record.excluded["duplicate"].num_documents == 1


def test_the_prompt_counts_in_what_is_read_and_not_in_what_is_scored():
    # 8 pairs of a prompt of 8 bytes and a text of 3; equal texts behind unlike prompts are kept.
    members = [Document(f"d{i}", f"g{i}", "text", "yes", f"Is it {i}?") for i in range(8)]
    members.append(Document("twin", "g8", "text", "yes \n", "Is it 3? "))
    members.append(Document("blank", "g9", "text", " ", "Is it 9?"))
    one = built(sources.Found(members, []), heldout_fraction=0.25)
    assert one.record.kept["train/text"] == record.Count(num_documents=6, num_bytes=18)
    assert one.record.excluded["empty"] == record.Count(num_documents=1, num_bytes=9)
    assert one.record.excluded["duplicate"].num_documents == 1
    limited = built(sources.Found(members[:8], []), max_bytes=23, heldout_fraction=0.25)
    assert len(limited.train + limited.heldout) == 3
    assert limited.record.excluded["max_bytes"] == record.Count(num_documents=5, num_bytes=55)


def test_record_hash_tells_prompts_apart_and_is_what_it_was_without():
    plain = built(sources.Found(numbered(8), [])).record
    assert plain.sha256 == "3dec6af41a5976f0ffb4281b6f04c527fc89bab9d66c6835b022ccc65f76570c"
    members = [d._replace(prompt="Say it: ") for d in numbered(8)]
    asked = built(sources.Found(members, [])).record
    members[3] = members[3]._replace(prompt="Say so: ")
    other = built(sources.Found(members, [])).record
    assert len({plain.sha256, asked.sha256, other.sha256}) == 3
    # The border between the two is part of it.
    moved = [d._replace(prompt="Say it: t", text=d.text[1:]) for d in numbered(8)]
    assert built(sources.Found(moved, [])).record.sha256 != asked.sha256


def test_max_bytes_reaches_the_bytes_and_takes_both_sides():
    one = built(sources.Found(numbered(10), []), max_bytes=25, heldout_fraction=0.2)
    # 5 texts of 6 bytes are the first to reach 25; 20% of 5 groups is 1.
    assert (len(one.train), len(one.heldout)) == (4, 1)
    assert one.record.excluded["max_bytes"] == record.Count(num_documents=5, num_bytes=30)
    exact = built(sources.Found(numbered(10), []), max_bytes=24)
    assert len(exact.train + exact.heldout) == 4
    small = {d.name for d in one.train + one.heldout}
    larger = built(sources.Found(numbered(10), []), max_bytes=40)
    assert small < {d.name for d in larger.train + larger.heldout}


def test_code_and_prose_of_a_module_stay_together_under_a_limit():
    members = [
        Document(f"m{i}", f"m{i}", kind, f"{kind} {i}")
        for i in range(50)
        for kind in ("code", "prose")
    ]
    one = built(sources.Found(members, []), max_bytes=200)
    kept = one.train + one.heldout
    assert len(kept) > 10
    assert abs(len(kept) - 2 * len({d.group for d in kept})) <= 1


def test_split_is_stable_across_versions():
    one = built(sources.Found(numbered(8), []), heldout_fraction=0.25)
    assert sorted(d.name for d in one.heldout) == ["d1", "d4"]
    assert [d.name for d in one.train] == ["d2", "d5", "d7", "d6", "d3", "d0"]


def test_too_small_a_corpus():
    with pytest.raises(ValueError, match="corpus is empty.*'folder'.*left out: 1 empty"):
        built(sources.Found([Document("a", "a", "text", "\n")], []))
    with pytest.raises(ValueError, match="nothing was left out"):
        built(sources.Found([], []))
    with pytest.raises(ValueError, match="one group of documents.*at least two"):
        built(sources.Found(numbered(1), []))


def test_record_hash_tells_corpora_apart():
    base = built(sources.Found(numbered(8), [])).record
    changed = numbered(8)
    changed[3] = changed[3]._replace(text="text 3!")
    renamed = numbered(8)
    renamed[3] = renamed[3]._replace(name="other")
    hashes = {
        base.sha256,
        built(sources.Found(changed, [])).record.sha256,
        built(sources.Found(renamed, [])).record.sha256,
        built(sources.Found(numbered(7), [])).record.sha256,
        built(sources.Found(numbered(8), []), heldout_fraction=0.6).record.sha256,
    }
    assert len(hashes) == 5


def test_same_corpus_check():
    base = built(sources.Found(numbered(8), [])).record
    record.check_same_corpus(base, recorded_sha256=base.sha256, where="record.json")
    with pytest.raises(ValueError, match=f"{base.sha256} as read now, 0123 in record.json"):
        record.check_same_corpus(base, recorded_sha256="0123", where="record.json")


def test_written_record_holds_files_and_faults(tmp_path):
    faults = [
        documents.Exclusion("bad.py", "does not parse", "line 3", 9),
        documents.Exclusion("a/test_x.py", "test", "", 7),
    ]
    one = built(sources.Found(numbered(4), faults))
    path = tmp_path / "data" / "corpus.json"
    record.write(one.record, path)
    loaded = json.loads(path.read_text(encoding="utf-8"))
    assert loaded == json.loads(json.dumps(one.record.to_json()))
    assert [entry["name"] for entry in loaded["files"]] == ["d0", "d1", "d2", "d3"]
    assert loaded["files"][0]["num_bytes"] == 6
    assert loaded["faults"] == ["bad.py: line 3"]
    assert loaded["excluded"]["test"] == {"num_documents": 1, "num_bytes": 7}
    assert sorted(tmp_path.rglob("*.tmp")) == []
