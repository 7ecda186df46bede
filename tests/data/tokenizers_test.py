"""Laws of tokenizers: round trips, no special id from text, bytes of tokens, streaming."""

import functools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tokenizers as backend
from tokenizers import decoders, models, pre_tokenizers

from deepseek_jax.data import tokenizers

CORPUS = [f"def number_{i}(x):\n    return x + {i}  # caf\u00e9 \u4e2d\u6587\n" for i in range(60)]
SPECIAL_TEXT = "a<bos>b<eos><pad> <bos><s>"
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
# Pieces that meet at borders of characters, tokens and special names.
TEXTS = st.text() | st.lists(
    st.sampled_from(
        ["<bos>", "<eos>", " ", "\n  ", "def", "\u00e9", "\U0001f600", "e\u0301", "\0", *TAGS]
    )
).map("".join)


@functools.cache
def make(kind):
    if kind == "bytes":
        return tokenizers.bytes_tokenizer()
    if kind == "tagged_bytes":
        return tokenizers.tagged_bytes_tokenizer()
    return tokenizers.train_bpe(CORPUS, vocab_size=300, max_bytes=10**6)


both = pytest.mark.parametrize("kind", ["bytes", "tagged_bytes", "bpe"])


@both
@hypothesis.given(TEXTS)
def test_round_trip(kind, text):
    tokenizer = make(kind)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    # No special id comes from text, and special ids have no text.
    assert not set(ids.tolist()) & {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}
    framed = [tokenizer.bos_id, *ids.tolist(), tokenizer.eos_id, tokenizer.pad_id]
    assert tokenizer.decode(framed) == text


@both
@hypothesis.given(TEXTS)
def test_byte_lengths_add_up(kind, text):
    tokenizer = make(kind)
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.token_bytes[i] for i in ids) == text.encode("utf-8")
    assert tokenizer.token_byte_lengths[ids].sum() == len(text.encode("utf-8"))
    specials = [tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id]
    assert tokenizer.token_byte_lengths[specials].tolist() == [0, 0, 0]


@both
@hypothesis.given(st.lists(st.integers(0, 258), max_size=12))
def test_stream_equals_decode_on_any_ids(kind, ids):
    tokenizer = make(kind)
    stream = tokenizer.stream_decoder()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)
    # A finished stream begins anew.
    assert stream.push(tokenizer.encode("x")[0]) == "x"


@hypothesis.given(st.text(min_size=1))
def test_stream_emits_whole_characters_as_soon_as_they_are_known(text):
    tokenizer = make("bytes")
    stream = tokenizer.stream_decoder()
    for character in text:
        pieces = [stream.push(i) for i in tokenizer.encode(character).tolist()]
        assert pieces == [""] * (len(pieces) - 1) + [character]


def test_hand_numbers():
    tokenizer = make("bytes")
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.vocab_size == 259
    # "A" is byte 65, the two bytes of e acute are 195 and 169.
    assert tokenizer.encode("A\u00e9").tolist() == [68, 198, 172]
    assert tokenizer.encode("").shape == (0,)
    trained = make("bpe")
    assert (trained.pad_id, trained.bos_id, trained.eos_id) == (0, 1, 2)
    assert trained.vocab_size == 300
    assert len(trained.encode(CORPUS[0])) < len(tokenizer.encode(CORPUS[0])) / 2


def test_tags_are_one_token_each():
    tokenizer = make("tagged_bytes")
    assert tokenizer.vocab_size == 263
    assert tokenizers.tag_ids(tokenizer) == (259, 260, 261, 262)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    text = "<think>A</think> <answer>B</answer><think"
    spelled = [ord(character) + 3 for character in "<think"]
    want = [259, 68, 260, 35, 261, 69, 262, *spelled]
    assert tokenizer.encode(text).tolist() == want
    assert tokenizer.encode_batch([text])[0].tolist() == want
    assert tokenizer.decode(want) == text
    assert tokenizer.token_bytes[260] == b"</think>"
    assert tokenizer.token_byte_lengths[259:].tolist() == [7, 8, 8, 9]
    for kind in ("bytes", "bpe"):
        with pytest.raises(ValueError, match="no added tokens .*<think>"):
            tokenizers.tag_ids(make(kind))


def test_tags_as_special_tokens_are_none(tmp_path):
    """They would have no text, so that no response could be read back."""
    inner = backend.Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    inner.add_special_tokens(["<s>", "</s>", *TAGS])
    inner.save(str(tmp_path / "t.json"))
    with pytest.raises(ValueError, match="t.json: no added tokens"):
        tokenizers.tag_ids(tokenizers.load(tmp_path / "t.json"))


@both
def test_batches_equal_single_texts(kind, monkeypatch):
    monkeypatch.setattr(tokenizers, "_CHUNK_CHARACTERS", 100)
    texts = ["", SPECIAL_TEXT, *CORPUS, "x" * 300, ""]
    tokenizer = make(kind)
    for ids, text in zip(tokenizer.encode_batch(texts), texts, strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text), strict=True)
    assert tokenizer.encode_batch([]) == []


@both
def test_saved_tokenizer_is_the_same(kind, tmp_path):
    tokenizer = make(kind)
    path = tmp_path / "run" / "tokenizer.json"
    tokenizer.save(path)
    again = tokenizers.load(path)
    assert again.sha256 == tokenizer.sha256
    assert again.vocab_size == tokenizer.vocab_size
    if kind == "tagged_bytes":
        assert tokenizers.tag_ids(again) == tokenizers.tag_ids(tokenizer)
    assert again.encode(SPECIAL_TEXT).tolist() == tokenizer.encode(SPECIAL_TEXT).tolist()
    assert [p.name for p in path.parent.iterdir()] == ["tokenizer.json"]


def test_training_is_deterministic():
    one = make("bpe")
    assert tokenizers.train_bpe(CORPUS[::-1], vocab_size=300, max_bytes=10**6).sha256 == one.sha256


def test_training_stops_at_the_limit():
    texts = ["ab" * 10, "xy" * 30]
    # One merge: of "ab" if only the first text's 20 bytes are read, else of "xy".
    first = tokenizers.train_bpe(texts, vocab_size=260, max_bytes=20)
    assert (len(first.encode("ab")), len(first.encode("xy"))) == (1, 2)
    second = tokenizers.train_bpe(texts, vocab_size=260, max_bytes=21)
    assert (len(second.encode("ab")), len(second.encode("xy"))) == (2, 1)


def test_too_large_a_vocabulary():
    with pytest.raises(ValueError, match="data.bpe_vocab_size=5000: the training text has only"):
        tokenizers.train_bpe(["abab abab"], vocab_size=5000, max_bytes=100)


def sentencepiece_like():
    """Blanks as U+2581, unknown characters as bytes: a decoder that isn't byte-level."""
    pieces = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)]]
    pieces += ["\u2581", "a", "b", "\u2581a", "\u2581ab", "ab"]
    merges = [("a", "b"), ("\u2581", "a"), ("\u2581a", "b")]
    model = models.BPE(
        vocab={p: i for i, p in enumerate(pieces)},
        merges=merges,
        unk_token="<unk>",
        byte_fallback=True,
    )
    tokenizer = backend.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    # Files may carry these; they would cut and fill texts without a word.
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    return tokenizer


def test_file_of_another_kind(tmp_path):
    path = tmp_path / "tokenizer.json"
    sentencepiece_like().save(str(path))
    tokenizer = tokenizers.load(path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    text = "ab ab a\u00e9<s> ab"
    ids = tokenizer.encode(text).tolist()
    assert len(ids) > 4
    assert len(tokenizer.encode("a")) == 1
    assert 1 not in ids
    assert tokenizer.decode(ids) == text
    # One blank is put in front of the text; the stream of a continuation keeps it.
    assert b"".join(tokenizer.token_bytes[i] for i in ids) == (" " + text).encode("utf-8")
    stream = tokenizer.stream_decoder()
    assert "".join(map(stream.push, ids)) == " " + text


def test_file_with_one_token_for_both_ends(tmp_path):
    model = models.BPE(vocab={"a": 0, "b": 5}, merges=[])
    tokenizer = backend.Tokenizer(model)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(tmp_path / "t.json"))
    loaded = tokenizers.load(tmp_path / "t.json")
    assert loaded.bos_id == loaded.eos_id == loaded.pad_id
    # Ids need not be dense: the largest one counts.
    assert loaded.vocab_size == 6 or loaded.bos_id == 6


def test_files_that_are_wrong(tmp_path):
    path = tmp_path / "t.json"
    with pytest.raises(FileNotFoundError, match="t.json: no such tokenizer.json"):
        tokenizers.load(path)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="t.json: not a tokenizer.json"):
        tokenizers.load(path)
    bare = backend.Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    bare.add_special_tokens(["<s>"])
    bare.save(str(path))
    with pytest.raises(ValueError, match=r"t\.json: no eos token; expected one of .*\['<s>'\]"):
        tokenizers.load(path)


def test_vocabulary_check():
    tokenizers.check_vocabulary(make("bytes"), model_vocab_size=259)
    with pytest.raises(ValueError, match="model.vocab_size=258: .* at least 259"):
        tokenizers.check_vocabulary(make("bytes"), model_vocab_size=258)
