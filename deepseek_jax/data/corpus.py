"""A corpus: documents without duplicates, cut to size, split by group. Floor 1.

What is taken and on which side it falls depends on hashes of names and texts alone: not on
the order in which files were found, not on where they lie, not on a seed.
"""

from typing import NamedTuple

from deepseek_jax.core.run_spec import DataSpec
from deepseek_jax.data import documents as documents_lib
from deepseek_jax.data import record, sources
from deepseek_jax.data.documents import Document, Exclusion


class Corpus(NamedTuple):
    """The two sides of a split, each in an order fixed by hash, and the record of both."""

    train: list[Document]
    heldout: list[Document]
    record: record.CorpusRecord


def read(data_spec: DataSpec) -> sources.Found:
    """All that the source named by the settings holds."""
    match data_spec.source, data_spec.path, data_spec.field:
        case "stdlib", _, _:
            return sources.read_stdlib()
        case "packages", _, _:
            return sources.read_packages()
        case "folder", str(path), _:
            return sources.read_folder(path)
        case "jsonl", str(path), str(field):
            return sources.read_jsonl(path, field=field, prompt_field=data_spec.prompt_field)
        case other:
            raise ValueError(f"data.source, data.path, data.field = {other!r}: no such source")


def build(
    found: sources.Found, *, source: str, max_bytes: int | None, heldout_fraction: float
) -> Corpus:
    """Deduplicates, cuts to size and splits what was read.

    Args:
      found: documents in any order, and what reading already left out.
      source: what the record calls their origin.
      max_bytes: documents are taken, whole, in an order of hashes until these bytes, prompts
        included, are reached or passed; None takes all.
      heldout_fraction: share of the groups held out, rounded to whole groups, at least one.

    Returns:
      The split. No text occurs twice behind the same prompt, up to blanks at the ends of lines,
      on one side or both; no group has documents on both sides.

    Raises:
      ValueError: no document has any text, or one group alone is left to split.
    """
    exclusions = list(found.exclusions)
    ordered = sorted(found.documents, key=_order)
    taken = _limited(_distinct(ordered, exclusions), exclusions, max_bytes=max_bytes)
    if not taken:
        raise ValueError(
            f"the corpus is empty: data.source={source!r} holds no document with any text; "
            f"{record.describe_exclusions(exclusions)}"
        )
    groups = sorted({document.group for document in taken}, key=_side)
    if len(groups) < 2:
        raise ValueError(
            f"the corpus has one group of documents, {taken[0].name}: at least two are needed, "
            "one of them to be held out (give more files or lines, or a larger data.max_bytes)"
        )
    num_heldout = min(max(1, round(heldout_fraction * len(groups))), len(groups) - 1)
    held = frozenset(groups[:num_heldout])
    train = [document for document in taken if document.group not in held]
    heldout = [document for document in taken if document.group in held]
    return Corpus(
        train,
        heldout,
        record.make(train, heldout, exclusions, source=source, num_groups=len(groups)),
    )


def _order(document: Document) -> tuple[str, str, str]:
    """The order in which documents are taken: groups shuffled by hash, each kept together."""
    return documents_lib.digest(f"order\0{document.group}"), document.kind, document.name


def _side(group: str) -> str:
    """The order in which groups are held out; unrelated to the one of `_order`."""
    return documents_lib.digest(f"side\0{group}")


def _distinct(ordered: list[Document], exclusions: list[Exclusion]) -> list[Document]:
    """The first document of each prompt and text; `exclusions` gets the others and empty texts."""
    first_names: dict[tuple[str, str], str] = {}
    kept = []
    for document in ordered:
        size = documents_lib.size(document)
        if not document.text.strip():
            exclusions.append(Exclusion(document.name, "empty", "", size))
            continue
        prompt, text = document.prompt, document.text
        key = documents_lib.normalized_digest(prompt), documents_lib.normalized_digest(text)
        if key in first_names:
            detail = f"same text as {first_names[key]}"
            exclusions.append(Exclusion(document.name, "duplicate", detail, size))
            continue
        first_names[key] = document.name
        kept.append(document)
    return kept


def _limited(
    ordered: list[Document], exclusions: list[Exclusion], *, max_bytes: int | None
) -> list[Document]:
    """The first documents, up to the one that reaches `max_bytes`; the rest is excluded."""
    if max_bytes is None:
        return ordered
    total = 0
    for index, document in enumerate(ordered):
        if total >= max_bytes:
            left = ordered[index:]
            exclusions.extend(
                Exclusion(rest.name, "max_bytes", "", documents_lib.size(rest)) for rest in left
            )
            return ordered[:index]
        total += documents_lib.size(document)
    return ordered
