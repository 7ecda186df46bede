"""What general compressors need for the held-out documents. Floor 5.

Each document is compressed alone, container included, as the files of `gzip -9 < document`
and `xz -9 < document` are: a compressor starts every document knowing nothing.
"""

import gzip
import lzma
from collections.abc import Callable, Sequence

import numpy as np

from deepseek_jax.evaluation.bits import DocumentBits

_LEVEL = 9
_SMALLEST_DICTIONARY = 2**12
_PRESET_DICTIONARY = 2**26


def gzip_size(text: bytes) -> int:
    """Bytes of a text after gzip -9, header and checksum included."""
    return len(gzip.compress(text, compresslevel=_LEVEL, mtime=0))


def xz_size(text: bytes) -> int:
    """Bytes of a text after xz -9, header and checksum included.

    The dictionary is the smallest power of two that holds the text, at most the preset's: the
    rest of the preset's, which the text cannot use, takes longer to clear than the text to
    compress.
    """
    needed = 1 << (len(text) - 1).bit_length()
    size = min(max(needed, _SMALLEST_DICTIONARY), _PRESET_DICTIONARY)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": _LEVEL, "dict_size": size}]
    return len(lzma.compress(text, format=lzma.FORMAT_XZ, filters=filters))


def document_bits(
    texts: Sequence[bytes], *, compressed_size: Callable[[bytes], int]
) -> DocumentBits:
    """Bits that a compressor needs for each document.

    Args:
      texts: the documents in UTF-8.
      compressed_size: `gzip_size` or `xz_size`.
    """
    sizes = np.array([compressed_size(text) for text in texts], np.int64)
    return DocumentBits(8.0 * sizes, np.array([len(text) for text in texts], np.int64))
