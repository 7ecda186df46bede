"""Sizes of known bytes, and agreement with the whole presets."""

import gzip
import lzma

import numpy as np

from deepseek_jax.evaluation import compression


def test_gzip_of_nothing_is_its_container():
    # Header 10, empty deflate block 2, checksum and length 8.
    assert compression.gzip_size(b"") == 20


def test_gzip_of_one_byte_by_hand():
    # A fixed-code deflate block of one literal: 3 + 8 + 7 bits, 3 bytes.
    assert compression.gzip_size(b"a") == 18 + 3


def test_sizes_are_those_of_the_presets():
    words = np.random.default_rng(0).choice([b"alpha ", b"beta ", b"gamma\n"], size=3000)
    for text in (b"", b"a", b"ab" * 2048, b"".join(words)):
        assert compression.gzip_size(text) == len(gzip.compress(text, 9))
        assert compression.xz_size(text) == len(lzma.compress(text, preset=9))


def test_each_document_is_compressed_alone():
    noise = np.random.default_rng(0).bytes(500)
    measured = compression.document_bits([noise, noise], compressed_size=compression.gzip_size)
    assert measured.bits.tolist() == [8 * compression.gzip_size(noise)] * 2
    assert measured.num_bytes.tolist() == [500, 500]
    assert measured.bits[1] > 8 * 500
