"""Packing against a plain loop, hand numbers, and the laws of rows."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from deepseek_jax.data import documents, rows, tokenizers
from deepseek_jax.data.documents import Document

PAD, BOS, EOS = 0, 1, 2


def packed(lengths, *, sequence_length, num_unscored=None):
    first = 3
    token_ids = []
    for n in lengths:
        token_ids.append(np.arange(first, first + n, dtype=np.int32))
        first += n
    kinds = np.arange(len(lengths), dtype=np.int8) % 3
    result = rows.pack(
        token_ids,
        kinds,
        np.array(num_unscored or [0] * len(lengths)),
        sequence_length=sequence_length,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=PAD,
    )
    return token_ids, kinds, result


def pack_reference(token_ids, kinds, *, sequence_length):
    """One input at a time: (token, target, mask, document, position, kind)."""
    cells = []
    piece = position = 0
    for ids, kind in zip(token_ids, kinds, strict=True):
        whole = [BOS, *ids.tolist(), EOS]
        is_new = True
        for token, target in zip(whole[:-1], whole[1:], strict=True):
            if len(cells) % sequence_length == 0:
                piece, position, is_new = 1, 0, False
            elif is_new:
                piece, position, is_new = piece + 1, 0, False
            cells.append((token, target, True, piece, position, kind))
            position += 1
    while len(cells) % sequence_length:
        cells.append((PAD, 0, False, 0, 0, -1))
    columns = [np.array(c).reshape(-1, sequence_length) for c in zip(*cells, strict=True)]
    return columns


@hypothesis.given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(2, 7))
def test_equals_the_loop(lengths, sequence_length):
    token_ids, kinds, result = packed(lengths, sequence_length=sequence_length)
    expected = pack_reference(token_ids, kinds, sequence_length=sequence_length)
    for array, column in zip([*result.rows, result.kind_ids], expected, strict=True):
        np.testing.assert_array_equal(array, column)
    dtypes = [array.dtype for array in (*result.rows, result.kind_ids)]
    assert dtypes == [np.int32, np.int32, np.bool_, np.int32, np.int32, np.int8]


def test_hand_numbers():
    # Documents of 2, 0 and 3 tokens have 3 + 1 + 4 inputs; rows of 5 hold 5 and 3.
    _, _, result = packed([2, 0, 3], sequence_length=5)
    np.testing.assert_array_equal(result.rows.tokens, [[1, 3, 4, 1, 1], [5, 6, 7, 0, 0]])
    np.testing.assert_array_equal(result.rows.targets, [[3, 4, 2, 2, 5], [6, 7, 2, 0, 0]])
    np.testing.assert_array_equal(result.rows.target_mask, [[1] * 5, [1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(result.rows.document_ids, [[1, 1, 1, 2, 3], [1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(result.rows.positions, [[0, 1, 2, 0, 0], [0, 1, 2, 0, 0]])
    np.testing.assert_array_equal(result.kind_ids, [[0, 0, 0, 1, 2], [2, 2, 2, -1, -1]])


@hypothesis.given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(2, 7))
def test_every_token_is_predicted_once_and_never_across_documents(lengths, sequence_length):
    token_ids, _, result = packed(lengths, sequence_length=sequence_length)
    mask = result.rows.target_mask
    expected = [token for ids in token_ids for token in [*ids.tolist(), EOS]]
    assert result.rows.targets[mask].tolist() == expected
    # A target is the next input unless that begins a document.
    inputs = result.rows.tokens[mask]
    same = inputs[1:] != BOS
    np.testing.assert_array_equal(result.rows.targets[mask][:-1][same], inputs[1:][same])


def test_prompts_by_hand():
    # Tokens 3 4 | 5 and 6 7 8 | 9, the prompts first: 4 + 5 inputs in rows of 3; the second
    # prompt is cut by the end of a row, and a text of no tokens is scored at its EOS alone.
    _, _, result = packed([3, 4, 1], sequence_length=3, num_unscored=[2, 3, 1])
    np.testing.assert_array_equal(result.rows.tokens, [[1, 3, 4], [5, 1, 6], [7, 8, 9], [1, 10, 0]])
    np.testing.assert_array_equal(
        result.rows.target_mask, [[0, 0, 1], [1, 0, 0], [0, 1, 1], [0, 1, 0]]
    )
    np.testing.assert_array_equal(result.rows.targets, [[0, 0, 5], [2, 0, 0], [0, 9, 2], [0, 2, 0]])
    np.testing.assert_array_equal(
        result.rows.document_ids, [[1, 1, 1], [1, 2, 2], [1, 1, 1], [1, 1, 0]]
    )
    np.testing.assert_array_equal(result.kind_ids.ravel(), [0] * 4 + [1] * 5 + [2] * 2 + [-1])


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=8),
    st.integers(2, 7),
)
def test_what_is_not_scored_is_exactly_the_prompts(parts, sequence_length):
    lengths = [prompt + text for prompt, text in parts]
    prompts = [prompt for prompt, _ in parts]
    token_ids, _, plain = packed(lengths, sequence_length=sequence_length)
    _, _, result = packed(lengths, sequence_length=sequence_length, num_unscored=prompts)
    scored, is_text = result.rows.target_mask, plain.rows.target_mask
    expected = [
        token
        for ids, prompt in zip(token_ids, prompts, strict=True)
        for token in [*ids[prompt:].tolist(), EOS]
    ]
    assert result.rows.targets[scored].tolist() == expected
    unscored = [
        token
        for ids, prompt in zip(token_ids, prompts, strict=True)
        for token in ids[:prompt].tolist()
    ]
    assert plain.rows.targets[is_text & ~scored].tolist() == unscored
    assert not scored[~is_text].any() and not result.rows.targets[~scored].any()
    # A prompt changes nothing else.
    for name in ("tokens", "document_ids", "positions"):
        np.testing.assert_array_equal(getattr(result.rows, name), getattr(plain.rows, name))
    np.testing.assert_array_equal(result.kind_ids, plain.kind_ids)


def test_prompt_and_text_are_encoded_each_for_itself():
    tokenizer = tokenizers.train_bpe(["abab " * 50 + "xyz" * 90], vocab_size=261, max_bytes=10**4)
    prompt, text = tokenizer.encode("xya"), tokenizer.encode("bab")
    assert len(tokenizer.encode("xyabab")) < len(prompt) + len(text)
    member = Document("a", "a", "text", "bab", "xya")
    other = Document("b", "b", "text", "xy")
    result = rows.pack_documents([member, other], tokenizer, sequence_length=40)
    inputs = [tokenizer.bos_id, *prompt, *text, tokenizer.bos_id, *tokenizer.encode("xy")]
    assert result.rows.tokens[0, : len(inputs)].tolist() == inputs
    lengths = tokenizer.token_byte_lengths
    assert rows.target_bytes(result.rows, lengths) == documents.byte_count(member) + 2 == 5


def test_rows_are_packed_from_documents_in_the_order_given():
    members = [
        Document("a", "a", "prose", "\u00e9"),
        Document("b", "b", "text", ""),
        Document("c", "c", "code", "xyz<eos>"),
    ]
    tokenizer = tokenizers.bytes_tokenizer()
    result = rows.pack_documents(members, tokenizer, sequence_length=4)
    # 2 + 1, 0 + 1 and 8 + 1 inputs.
    assert rows.num_rows(result.rows) == 4
    assert result.kind_ids.ravel().tolist() == [1] * 3 + [2] + [0] * 9 + [-1] * 3
    lengths = tokenizer.token_byte_lengths
    assert rows.target_bytes(result.rows, lengths) == sum(map(documents.byte_count, members)) == 10
    # The second row has lost its BOS and predicts "xyz<" behind it: 4 bytes.
    assert rows.target_bytes(rows.take(result.rows, np.array([1])), lengths) == 4


def test_padding_weighs_nothing_even_if_its_target_id_has_bytes():
    _, _, result = packed([2], sequence_length=5)
    lengths = np.array([7, 7, 0, 1, 2], dtype=np.int32)
    # Targets 3, 4, EOS; id 0, the target of padding, would add 14.
    assert rows.target_bytes(result.rows, lengths) == 3


def test_shuffled_depends_on_the_seed_and_not_on_the_order():
    members = [Document(f"d{i}", "g", "text", "t") for i in range(20)]
    one = rows.shuffled(members, seed=0)
    assert one == rows.shuffled(members[::-1], seed=0)
    assert sorted(one) == sorted(members)
    assert one != members
    assert one != rows.shuffled(members, seed=1)


def test_nothing_to_pack():
    with pytest.raises(ValueError, match="0 documents"):
        packed([], sequence_length=4)
    with pytest.raises(ValueError, match=r"num_unscored=\[3\] of documents of \[2\] tokens"):
        packed([2], sequence_length=4, num_unscored=[3])
