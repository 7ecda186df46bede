"""Tokenizers: text to ids and back, and what a token weighs in bytes. Floor 1.

All kinds (bytes, byte-pair encoding, a given `tokenizer.json`) are one class over the
`tokenizers` library, and are saved as a `tokenizer.json`, so that a run directory needs
nothing else.
"""

import codecs
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers as backend
from jaxtyping import Int32
from tokenizers import decoders, models, pre_tokenizers, trainers

from deepseek_jax.data.problems import responses

_PAD, _BOS, _EOS = "<pad>", "<bos>", "<eos>"
_SPECIALS = (_PAD, _BOS, _EOS)
# Names under which tokenizer files are known to hold their special tokens, preferred first;
# \uff5c and \u2581 are the bars and blanks of DeepSeek's.
_BOS_NAMES = (
    _BOS,
    "<s>",
    "<|begin_of_text|>",
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    "<|startoftext|>",
    "[BOS]",
    "[CLS]",
    "<|endoftext|>",
)
_EOS_NAMES = (
    _EOS,
    "</s>",
    "<|end_of_text|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<|endoftext|>",
    "[EOS]",
    "[SEP]",
)
_PAD_NAMES = (_PAD, "<|pad|>", "<\uff5c\u2581pad\u2581\uff5c>", "[PAD]")
_CHUNK_CHARACTERS = 4_000_000


class TagIds(NamedTuple):
    """The ids of the tags of `problems.responses`, in the order of `responses.TAGS`."""

    think: int
    end_think: int
    answer: int
    end_answer: int


class Tokenizer:
    """Text to ids and back.

    Text is only ever text: "<bos>" in it becomes the tokens of those five characters, never the
    special id. With "bytes" and "bpe" nothing is normalised and `decode(encode(text)) == text`
    for every text; a file's tokenizer may lose what its normaliser drops.

    Attributes:
      vocab_size: largest id plus one.
      bos_id: the id that begins a document.
      eos_id: the id that ends a document.
      pad_id: the id of padding; `eos_id` in a file that has none.
    """

    def __init__(self, tokenizer: backend.Tokenizer, *, where: str) -> None:
        """Wraps a tokenizer of the library, which must not be used elsewhere afterwards.

        Args:
          tokenizer: of the library; its own truncation and padding are switched off.
          where: what error messages call it, e.g. the path of its file.

        Raises:
          ValueError: no token that could begin, or none that could end a document.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._where = where
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = {token.content: i for i, token in added.items() if token.special}
        self._word_ids = {token.content: i for i, token in added.items() if not token.special}
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.bos_id = self._find_special("bos", _BOS_NAMES)
        self.eos_id = self._find_special("eos", _EOS_NAMES)
        has_pad = any(name in self._special_ids for name in _PAD_NAMES)
        self.pad_id = self._find_special("pad", _PAD_NAMES) if has_pad else self.eos_id

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the file that `save` writes."""
        return hashlib.sha256(self._tokenizer.to_str(pretty=True).encode("utf-8")).hexdigest()

    def encode(self, text: str) -> Int32[np.ndarray, " L"]:
        """The ids of a text, no special id among them."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, dtype=np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " L"]]:
        """`encode` of each text, on all cores, in parts that bound the memory in use."""
        arrays: list[Int32[np.ndarray, " L"]] = []
        for part in _parts(texts):
            encodings = self._tokenizer.encode_batch_fast(part, add_special_tokens=False)
            arrays.extend(np.array(encoding.ids, dtype=np.int32) for encoding in encodings)
        return arrays

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special ids have none, broken UTF-8 becomes U+FFFD."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    @functools.cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes that each id adds to a text that has already begun; none for special ids.

        Byte-level tokenizers: exactly the bytes the token stands for. Others: the UTF-8 of what
        the id decodes to behind another token, blanks that the decoder puts between included.
        """
        decoder = json.loads(self._tokenizer.to_str())["decoder"]
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        pieces = [b""] * self.vocab_size
        if _has_step(decoder, "ByteLevel"):
            for token, i in vocabulary.items():
                pieces[i] = _byte_level_bytes(token)
        else:
            ids = sorted(vocabulary.values())
            # A token is seen behind another one, as decoders treat the first one apart.
            first = self.encode("a").tolist()[:1]
            before = self._tokenizer.decode(first)
            after = self._tokenizer.decode_batch([[*first, i] for i in ids])
            for i, text in zip(ids, after, strict=True):
                pieces[i] = text.removeprefix(before).encode("utf-8")
            if _has_step(decoder, "ByteFallback"):
                for token, i in vocabulary.items():
                    if match := re.fullmatch("<0x([0-9A-F]{2})>", token):
                        pieces[i] = bytes.fromhex(match[1])
        for i in self._special_ids.values():
            pieces[i] = b""
        return tuple(pieces)

    @functools.cached_property
    def token_byte_lengths(self) -> Int32[np.ndarray, " V"]:
        """Bytes of text for each id, 0 for special ids.

        The sum over the targets of whole documents is the documents' size in UTF-8 if the
        tokenizer is byte-level; bits per byte = nats / ln 2 / that sum, where the end of a
        document costs nats and adds no byte.
        """
        return np.array([len(piece) for piece in self.token_bytes], dtype=np.int32)

    def stream_decoder(self) -> "StreamDecoder":
        """A decoder of ids that come one at a time."""
        return StreamDecoder(self.token_bytes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a `tokenizer.json` that `load` and the `tokenizers` library read."""
        target = pathlib.Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(target.name + ".tmp")
        unfinished.write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")
        unfinished.replace(target)

    def _find_special(self, role: str, names: Sequence[str]) -> int:
        """The id of the first of `names` that is a special token here."""
        for name in names:
            if name in self._special_ids:
                return self._special_ids[name]
        raise ValueError(
            f"{self._where}: no {role} token; expected one of {list(names)} among its special "
            f"tokens, which are {sorted(self._special_ids)}"
        )


class StreamDecoder:
    """Text from ids that come one at a time, never a part of a character.

    The pieces, joined, are the text of all ids; for a byte-level tokenizer that is `decode` of
    them. Others may lay a blank in front that `decode` strips.
    """

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        """Starts an empty text, given the bytes of each id."""
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The characters that this id completes, "" if none."""
        return self._utf8.decode(self._token_bytes[token_id])

    def finish(self) -> str:
        """U+FFFD if the text ended within a character, else ""; a new text may then begin."""
        return self._utf8.decode(b"", final=True)


def bytes_tokenizer() -> Tokenizer:
    """One token for each byte of UTF-8: ids 0..2 are pad, bos, eos, a byte's id is it plus 3."""
    return Tokenizer(_bytes(), where="the byte tokenizer")


def tagged_bytes_tokenizer() -> Tokenizer:
    """The byte tokenizer, and each tag of `responses.TAGS` in a text is one id of 259..262.

    Tags are text: `decode` writes them, and they weigh their bytes.
    """
    tokenizer = _bytes()
    tokenizer.add_tokens(
        [backend.AddedToken(tag, normalized=False, special=False) for tag in responses.TAGS]
    )
    return Tokenizer(tokenizer, where="the byte tokenizer with tags")


def tag_ids(tokenizer: Tokenizer) -> TagIds:
    """The ids of the tags, each of which is one token wherever it stands in a text.

    Raises:
      ValueError: the tokenizer lacks one, or holds it as a special token, which has no text.
    """
    missing = [tag for tag in responses.TAGS if tag not in tokenizer._word_ids]
    if missing:
        raise ValueError(
            f"{tokenizer._where}: no added tokens {missing} for the parts of a response; "
            "data.tokenizer='tagged_bytes' has them"
        )
    return TagIds(*(tokenizer._word_ids[tag] for tag in responses.TAGS))


def train_bpe(texts: Iterable[str], *, vocab_size: int, max_bytes: int) -> Tokenizer:
    """A byte-level byte-pair encoding of the texts, the same for the same texts in any order.

    Args:
      texts: to train on; only the first ones are used, whole, until `max_bytes` are reached.
      vocab_size: entries, 256 bytes and the specials 0 pad, 1 bos, 2 eos included.
      max_bytes: of UTF-8 after which no further text is used.

    Raises:
      ValueError: the texts are too small or uniform for so many entries.
    """
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIALS),
        initial_alphabet=sorted(_byte_characters().values()),
        show_progress=False,
    )
    tokenizer = _byte_level(models.BPE(), use_regex=True)
    tokenizer.train_from_iterator(_first_bytes(texts, max_bytes=max_bytes), trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"data.bpe_vocab_size={vocab_size}: the training text has only "
            f"{tokenizer.get_vocab_size()} entries to learn; ask for at most that many"
        )
    return Tokenizer(tokenizer, where="the trained tokenizer")


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a `tokenizer.json`, or without a token to begin or to end a document.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise FileNotFoundError(f"{name}: no such tokenizer.json")
    try:
        tokenizer = backend.Tokenizer.from_file(name)
    except Exception as error:  # The library raises no narrower class.
        raise ValueError(f"{name}: not a tokenizer.json of the tokenizers library ({error})") from (
            error
        )
    return Tokenizer(tokenizer, where=name)


def check_vocabulary(tokenizer: Tokenizer, *, model_vocab_size: int) -> None:
    """Raises unless the model has an embedding for every id of the tokenizer.

    Raises:
      ValueError: the tokenizer's ids go beyond the model's vocabulary.
    """
    if tokenizer.vocab_size > model_vocab_size:
        raise ValueError(
            f"model.vocab_size={model_vocab_size}: the tokenizer has ids up to "
            f"{tokenizer.vocab_size - 1}, so at least {tokenizer.vocab_size} are needed; a "
            "checkpoint of another vocabulary needs the tokenizer.json it was trained with"
        )


def _bytes() -> backend.Tokenizer:
    """The tokenizer of bytes, of the library."""
    vocabulary = {name: i for i, name in enumerate(_SPECIALS)}
    for byte, character in _byte_characters().items():
        vocabulary[character] = byte + len(_SPECIALS)
    tokenizer = _byte_level(models.BPE(vocab=vocabulary, merges=[]), use_regex=False)
    tokenizer.add_special_tokens(list(_SPECIALS))
    return tokenizer


def _byte_level(model: Any, *, use_regex: bool) -> backend.Tokenizer:
    """An untrained tokenizer whose alphabet is the bytes; the regex is GPT-2's."""
    tokenizer = backend.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@functools.cache
def _byte_characters() -> dict[int, str]:
    """The printable character by which byte-level tokenizer files write each byte.

    Latin-1's printable characters stand for themselves; the other bytes take the characters
    from U+0100 on, in order.
    """
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


@functools.cache
def _byte_values() -> dict[str, int]:
    """The inverse of `_byte_characters`."""
    return {character: byte for byte, character in _byte_characters().items()}


def _byte_level_bytes(token: str) -> bytes:
    """The bytes a token of a byte-level vocabulary stands for; an added one may be plain text."""
    values = _byte_values()
    if all(character in values for character in token):
        return bytes(values[character] for character in token)
    return token.encode("utf-8")


def _has_step(decoder: dict[str, Any] | None, name: str) -> bool:
    """Whether a decoder's description holds a step of this type."""
    if decoder is None:
        return False
    if decoder["type"] == "Sequence":
        return any(_has_step(step, name) for step in decoder["decoders"])
    return decoder["type"] == name


def _first_bytes(texts: Iterable[str], *, max_bytes: int) -> Iterator[str]:
    """The first texts, whole, until `max_bytes` are reached."""
    total = 0
    for text in texts:
        if total >= max_bytes:
            return
        total += len(text.encode("utf-8"))
        yield text


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
    """Consecutive texts in lists of a bounded number of characters, at least one text each."""
    part: list[str] = []
    size = 0
    for text in texts:
        if part and size + len(text) > _CHUNK_CHARACTERS:
            yield part
            part, size = [], 0
        part.append(text)
        size += len(text)
    if part:
        yield part
