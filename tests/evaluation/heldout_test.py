"""Held-out documents in packed rows, the byte stream behind them, and the loss on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.data import rows as rows_lib
from deepseek_jax.evaluation import baselines, byte_stream, heldout
from tests import tolerances

BOS, EOS, PAD = 256, 257, 258
TOKEN_BYTES = [bytes([i]) for i in range(256)] + [b"", b"", b""]
TOKEN_BYTE_LENGTHS = np.array([len(piece) for piece in TOKEN_BYTES], np.int32)
TEXTS = [b"abcde", b"fg", b"hijklmnop", b"q"]
KINDS = [0, 1, 0, 1]


def packed(texts=TEXTS, kinds=KINDS, *, length=4, num_unscored=None):
    return rows_lib.pack(
        [np.frombuffer(text, np.uint8).astype(np.int32) for text in texts],
        np.array(kinds, np.int8),
        np.array(num_unscored or [0] * len(texts)),
        sequence_length=length,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=PAD,
    )


def heldout_set(num_rows=None, **kwargs):
    data = packed(**kwargs)
    return heldout.make(data.rows, data.kind_ids, TOKEN_BYTE_LENGTHS, bos_id=BOS, num_rows=num_rows)


def test_documents_go_on_over_row_ends():
    made = heldout_set()
    # 6 + 3 + 10 + 2 targets in rows of 4.
    expected = [0] * 6 + [1] * 3 + [2] * 10 + [3] * 2 + [-1] * 3
    assert made.document_index.ravel().tolist() == expected
    assert made.num_bytes.tolist() == [5, 2, 9, 1]
    assert made.num_targets.tolist() == [6, 3, 10, 2]
    assert made.kind_ids.tolist() == KINDS


def test_the_last_document_may_be_cut():
    made = heldout_set(num_rows=3)
    assert made.num_bytes.tolist() == [5, 2, 3]
    texts = byte_stream.document_texts(made.rows, made.document_index, TOKEN_BYTES)
    assert texts == [b"abcde", b"fg", b"hij"]


def test_the_byte_stream_is_the_text():
    made = heldout_set()
    texts = byte_stream.document_texts(made.rows, made.document_index, TOKEN_BYTES)
    assert texts == TEXTS


def test_prompts_are_no_part_of_what_is_measured():
    # 6 + 3 + 10 + 2 inputs; the prompts are "ab", "f", "hijklmn" and none.
    made = heldout_set(num_unscored=[2, 1, 7, 0])
    assert made.num_bytes.tolist() == [3, 1, 2, 1]
    assert made.num_targets.tolist() == [4, 2, 3, 2]
    assert made.kind_ids.tolist() == KINDS
    texts = byte_stream.document_texts(made.rows, made.document_index, TOKEN_BYTES)
    assert texts == [b"cde", b"g", b"op", b"q"]
    train = packed(num_unscored=[2, 1, 7, 0]).rows
    for method in baselines.measure(train, made, TOKEN_BYTES, bos_id=BOS):
        assert method.num_bytes.tolist() == [3, 1, 2, 1]
        assert np.isfinite(method.bits).all()


def test_a_last_document_that_is_cut_in_its_prompt_is_left_out():
    made = heldout_set(num_rows=3, num_unscored=[2, 1, 7, 0])
    assert made.num_bytes.tolist() == [3, 1]
    assert made.kind_ids.tolist() == KINDS[:2]
    assert made.document_index.ravel().tolist() == [0] * 6 + [1] * 3 + [-1] * 3
    with pytest.raises(ValueError, match="first 1 held-out rows hold nothing but prompts"):
        heldout_set(num_rows=1, num_unscored=[5, 1, 7, 0])


@pytest.mark.parametrize("num_rows", [0, 7])
def test_rows_that_are_not_there_are_refused(num_rows):
    with pytest.raises(ValueError, match=rf"eval.num_rows={num_rows} is outside \[1, 6\]"):
        heldout_set(num_rows=num_rows)


def test_rows_that_start_in_a_document_are_refused():
    rows = rows_lib.take(packed().rows, np.array([1, 2], np.int32))
    with pytest.raises(ValueError, match="not with the start of a document"):
        heldout.index_documents(rows, bos_id=BOS)


def test_byte_pairs_by_hand():
    pairs = byte_stream.byte_pairs([b"ab", b"", b"c"])
    bos, eos = byte_stream.BOS, byte_stream.EOS
    assert pairs.contexts.tolist() == [bos, 97, 98, bos, bos, 99]
    assert pairs.targets.tolist() == [97, 98, eos, eos, 99, eos]


def test_document_bits_by_hand():
    made = heldout_set()
    terms = np.full(made.rows.targets.shape, np.log(2.0))
    terms[~made.rows.target_mask] = np.nan  # padding reaches nothing
    measured = heldout.document_bits(made, terms)
    np.testing.assert_allclose(measured.bits, [6.0, 3.0, 10.0, 2.0], **tolerances.OP_F32)
    found = heldout.summarize(made, terms, seed=0)
    # 21 targets of 1 bit over 17 bytes; code 16 over 14, prose 5 over 3.
    np.testing.assert_allclose(found.bits_per_byte.value, 21 / 17, **tolerances.OP_F32)
    np.testing.assert_allclose(found.nats, 21 * np.log(2.0), **tolerances.OP_F32)
    np.testing.assert_allclose(found.nats_per_target, np.log(2.0), **tolerances.OP_F32)
    assert list(found.by_kind) == ["code", "prose"]
    np.testing.assert_allclose(found.by_kind["code"].value, 16 / 14, **tolerances.OP_F32)
    np.testing.assert_allclose(found.by_kind["prose"].value, 5 / 3, **tolerances.OP_F32)


def table_logits(variables, batch):
    """Logits that depend on the input token only."""
    return variables["table"][batch["tokens"]]


@pytest.mark.parametrize("batch_size", [1, 4, 6, 16])
def test_target_terms_are_those_of_the_model_in_any_batch(batch_size):
    made = heldout_set()
    logits = jax.random.normal(jax.random.key(0), (259, 259))
    terms = heldout.target_terms(table_logits, {"table": logits}, made.rows, batch_size=batch_size)
    logprobs = np.asarray(jax.nn.log_softmax(logits))
    expected = -logprobs[made.rows.tokens, made.rows.targets]
    assert terms.shape == made.rows.targets.shape
    np.testing.assert_allclose(
        terms, np.where(made.rows.target_mask, expected, 0.0), **tolerances.LAYER_F32
    )


def test_the_variables_are_arguments_not_constants():
    made = heldout_set()
    for value in (0.0, 3.0):
        table = jnp.zeros((259, 259)).at[:, EOS].set(value)
        terms = heldout.target_terms(table_logits, {"table": table}, made.rows, batch_size=6)
        end = np.log(258 + np.exp(value)) - value
        is_end = made.rows.target_mask & (made.rows.targets == EOS)
        np.testing.assert_allclose(terms[is_end], end, **tolerances.LAYER_F32)


def test_all_methods_measure_the_same_text():
    made = heldout_set(num_rows=3)
    measured = baselines.measure(packed().rows, made, TOKEN_BYTES, bos_id=BOS)
    for method in measured:
        assert method.num_bytes.tolist() == made.num_bytes.tolist()
        assert np.isfinite(method.bits).all()


def test_with_a_token_for_each_byte_both_bigrams_agree():
    # The same symbols under the same smoothing, but for the unused padding id.
    made = heldout_set()
    train = packed([b"abcabcab", b"fgh" * 5, b"hijklmnop"], [0, 1, 0]).rows
    measured = baselines.measure(train, made, TOKEN_BYTES[:258], bos_id=BOS)
    np.testing.assert_allclose(
        measured.token_bigram.bits, measured.byte_bigram.bits, **tolerances.OP_F32
    )
