"""What a run of contrastive pretraining has learned of meaning, beside methods that learn nothing.

Run: python -m experiments.semantics --workdir=runs/contrastive

On every held-out document with two spans: how often a span's partner is found among all held-out
spans, by the model, by the same model untrained, by BM25; alignment and uniformity; the loss of
the next token; and triples of words. Prints tables; writes `semantics.md`, `semantics.json` and
pictures into the run's directory.
"""

import functools
import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich import console as rich_console
from rich import markdown as rich_markdown

from deepseek_jax.contrastive import heldout, stage
from deepseek_jax.core import mesh_spec
from deepseek_jax.core.contrastive_spec import ContrastiveRunSpec
from deepseek_jax.data.spans import SpanData, SpanPairs
from deepseek_jax.evaluation import page, retrieval, semantic_plots, word_triples
from deepseek_jax.evaluation.bootstrap import Estimate
from deepseek_jax.nn.span import SpanDecoder
from deepseek_jax.objectives import contrastive
from deepseek_jax.parallel import layout as layout_lib
from deepseek_jax.training import optimizer, stage_inputs, state
from experiments import settings

RECALL_AT = (1, 10)
# A word of a triple occurs at least this often in the training text, and is the mean of so many
# of its contexts.
MIN_COUNT = 50
NUM_CONTEXTS = 32
_SEED = 0
_NAMES = {
    "projection": "projection of the last state",
    "last": "last hidden state",
    "mean": "mean of the hidden states",
    "tokens": "mean of the token embeddings",
}


class Opened(NamedTuple):
    """A run, its text, and its pairs of held-out spans."""

    spec: ContrastiveRunSpec
    step: int
    model: SpanDecoder
    variables: dict[str, Any]
    data: SpanData
    pairs: SpanPairs
    layout: layout_lib.Layout


class Method(NamedTuple):
    """How well a method finds partners.

    `ranks` [N, 2] are those of the partners; `lead` is that at 1 over BM25 over words, on the same
    spans; alignment and uniformity are of methods with embeddings.
    """

    name: str
    ranks: np.ndarray
    recall: dict[int, Estimate]
    lead: Estimate | None
    alignment: float | None
    uniformity: float | None


class Findings(NamedTuple):
    """What is measured of a run; `embeddings` are those that it was trained for.

    `triples` are by method: what the run was trained for, the same untrained, the words' own
    token embeddings.
    """

    step: int
    num_documents: int
    heldout_loss: float
    methods: list[Method]
    triples: dict[str, list[word_triples.Judged]]
    embeddings: heldout.Encoded


def open_run(directory: pathlib.Path, *, given: SpanData | None = None) -> Opened:
    """The newest checkpoint of a run, on one device.

    Args:
      directory: of the run.
      given: its text, where it has been read before; None reads it.

    Raises:
      FileNotFoundError: no run there, or none that has saved anything.
      ValueError: it is no run of contrastive pretraining.
    """
    spec = settings.load_run_spec(directory)
    if not isinstance(spec, ContrastiveRunSpec):
        raise ValueError(f"{directory}: no run of stage='contrastive'")
    model = SpanDecoder(spec.model.dropless(), contrastive=spec.contrastive)
    one_device = layout_lib.make(mesh_spec.ONE_DEVICE, jax.devices())
    length = spec.data.sequence_length
    opened = stage_inputs.open_model(
        str(directory), model, sequence_length=length, layout=one_device, step=None
    )
    data = stage.load_data(directory, spec, given=given)
    return Opened(
        spec,
        opened.model.step,
        model,
        {"params": opened.model.params, "balance": opened.model.balance},
        data,
        heldout.pairs(data.heldout, num=None, span_length=length),
        one_device,
    )


def untrained(run: Opened) -> dict[str, Any]:
    """The variables that a run of another seed would begin with."""
    initial = functools.partial(
        state.initial_state,
        run.model,
        optimizer.without_moments(),
        sequence_length=run.spec.data.sequence_length,
    )
    fresh = jax.jit(initial)(jax.random.key(run.spec.seed + 1))
    return {"params": fresh.params, "balance": fresh.balance}


def measure(run: Opened, *, lexical: list[Method] | None = None) -> Findings:
    """Every method on every held-out pair, and the triples.

    Args:
      run: of `open_run`.
      lexical: of `lexical_methods`, where they have been measured on the same pairs before.
    """
    kinds = heldout.kinds_of(run.spec.contrastive)
    encode = heldout.make_encode(run.model, kinds)
    size = 2 * run.spec.contrastive.batch_size
    groups = run.pairs.groups
    initial = untrained(run)
    fresh, _ = heldout.encode_pairs(encode, initial, run.pairs, batch_size=size, layout=run.layout)
    found, nats = heldout.encode_pairs(
        encode, run.variables, run.pairs, batch_size=size, layout=run.layout
    )
    embedded = [
        *(_of_embeddings(_NAMES[kind], found[kind], groups) for kind in kinds),
        *(_of_embeddings(f"untrained: {_NAMES[kind]}", fresh[kind], groups) for kind in kinds),
    ]
    lexical = lexical_methods(run) if lexical is None else lexical
    bm25 = lexical[0].ranks
    methods = [
        *(
            method._replace(lead=retrieval.lead(method.ranks, bm25, groups, at=1, seed=_SEED))
            for method in embedded
        ),
        *lexical,
    ]
    own = found[kinds[0]]
    return Findings(run.step, len(own.first), nats, methods, triples(run, encode, initial), own)


def lexical_methods(run: Opened) -> list[Method]:
    """BM25, which knows nothing but which words two spans share; over words first."""
    rows = np.concatenate([run.pairs.first, run.pairs.second])
    groups = run.pairs.groups
    words = [terms(run.data.tokenizer.decode(row)) for row in rows]
    return [
        _of_scores("BM25 over words", retrieval.bm25(words), groups, None),
        _of_scores("BM25 over tokens", retrieval.bm25(rows.tolist()), groups, None),
    ]


def terms(text: str) -> list[str]:
    """The words of a text in small letters; identifiers count whole and by their parts."""
    found = []
    for word in re.findall(r"\w+", text):
        parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", word)
        found += [word.lower(), *([part.lower() for part in parts] if len(parts) > 1 else [])]
    return found


def _of_embeddings(name: str, found: heldout.Encoded, groups: np.ndarray) -> Method:
    scores = retrieval.cosines(found.first, found.second)
    every = np.concatenate([found.first, found.second])
    return _of_scores(
        name,
        scores,
        groups,
        (
            float(contrastive.alignment(jnp.asarray(found.first), jnp.asarray(found.second))),
            float(contrastive.uniformity(jnp.asarray(every))),
        ),
    )


def _of_scores(
    name: str, scores: np.ndarray, groups: np.ndarray, shape: tuple[float, float] | None
) -> Method:
    ranks = retrieval.partner_ranks(scores)
    recall = {at: retrieval.recall(ranks, groups, at=at, seed=_SEED) for at in RECALL_AT}
    return Method(name, ranks, recall, None, *((None, None) if shape is None else shape))


def triples(
    run: Opened, encode: heldout.Encode, initial: dict[str, Any]
) -> dict[str, list[word_triples.Judged]]:
    """The triples whose words occur often enough, a word being the mean of its contexts.

    Args:
      run: of `open_run`.
      encode: of `heldout.make_encode`, what the run was trained for first.
      initial: of `untrained`.
    """
    tokenizer, documents = run.data.tokenizer, run.data.train.token_ids
    continues = np.array(
        [bool(re.match(rb"[A-Za-z0-9_]", piece)) for piece in tokenizer.token_bytes], bool
    )
    generator = np.random.default_rng(_SEED)
    counts: dict[str, int] = {}
    rows: dict[str, np.ndarray] = {}
    for word in sorted({word for triple in word_triples.TRIPLES for word in triple}):
        places = word_triples.find(documents, tokenizer.encode(f" {word}"), continues)
        found = word_triples.contexts(
            documents,
            places,
            generator,
            num=NUM_CONTEXTS,
            span_length=run.spec.data.sequence_length,
        )
        counts[word] = len(places)
        if len(places) >= MIN_COUNT and len(found) >= NUM_CONTEXTS:
            rows[word] = found.astype(np.int32)
    if not rows:
        return {}
    kind = heldout.kinds_of(run.spec.contrastive)[0]

    def of_contexts(variables: dict[str, Any]) -> dict[str, np.ndarray]:
        size = 2 * run.spec.contrastive.batch_size
        every = np.concatenate(list(rows.values()))
        found, _ = heldout.encode_all(encode, variables, every, batch_size=size, layout=run.layout)
        parts = np.split(found[kind], len(rows))
        return {word: part.mean(axis=0) for word, part in zip(rows, parts, strict=True)}

    embedding = np.asarray(run.variables["params"]["embed"]["embedding"])
    vectors = {
        _NAMES[kind]: of_contexts(run.variables),
        f"untrained: {_NAMES[kind]}": of_contexts(initial),
        "token embeddings of the word": {
            word: embedding[tokenizer.encode(f" {word}")].mean(axis=0) for word in rows
        },
    }
    return {
        name: word_triples.judge(word_triples.TRIPLES, counts, word_triples.centred(each))
        for name, each in vectors.items()
    }


def write(directory: pathlib.Path, run: Opened, findings: Findings) -> str:
    """Writes the page, its JSON and its pictures; returns the page."""
    semantic_plots.recall_bars(
        directory / "recall.png", {method.name: method.recall for method in findings.methods}
    )
    middle = findings.embeddings.first + findings.embeddings.second
    semantic_plots.document_map(directory / "map.png", middle, run.data.heldout.names)
    content = page.plain(findings._asdict() | {"embeddings": None})
    for method in content["methods"]:
        del method["ranks"]
    text = "\n\n".join(
        [*_words(run, findings), _table(findings.methods), *_triples(findings.triples)]
    )
    page.write(directory, name="semantics", markdown=text + "\n", content=content)
    return text


def _words(run: Opened, findings: Findings) -> list[str]:
    length, num = run.spec.data.sequence_length, findings.num_documents
    return [
        "# The semantic space of held-out text",
        f"{num:,} held-out documents with two spans of {length} tokens each "
        f"({run.data.heldout.num_short:,} were too short); the partner of each of the {2 * num:,} "
        f"spans is looked for among all {2 * num - 1:,} others (other parts of its module are "
        "wrong answers; intervals draw whole modules), so chance is "
        f"{100.0 / (2 * num - 1):.2f}% at 1. Step {run.step}. Next token: "
        f"{findings.heldout_loss:.4f} nats a token of these spans.",
        page.picture("recall.png", "How often the partner is found"),
        page.picture("map.png", "Held-out documents by package"),
    ]


def _table(found: list[Method]) -> str:
    def share(value: Estimate) -> str:
        interval = "" if value.low is None else f" [{100 * value.low:.1f}, {100 * value.high:.1f}]"  # type: ignore[operator]
        return f"{100 * value.value:.1f}%{interval}"

    def points(value: Estimate) -> str:
        told = f"{100.0 * value.value:+.1f}"
        if value.low is None or value.high is None:
            return told
        return f"{told} [{100.0 * value.low:+.1f}, {100.0 * value.high:+.1f}]"

    return page.table(
        [
            "method",
            *(f"recall@{at}" for at in RECALL_AT),
            "lead over BM25 at 1 (points)",
            "alignment",
            "uniformity",
        ],
        [
            [
                method.name,
                *(share(method.recall[at]) for at in RECALL_AT),
                "" if method.lead is None else points(method.lead),
                *(
                    "" if value is None else f"{value:.3f}"
                    for value in (method.alignment, method.uniformity)
                ),
            ]
            for method in found
        ],
    )


def _triples(by_method: dict[str, list[word_triples.Judged]]) -> list[str]:
    own = next(iter(by_method.values()), [])
    if not own:
        return [f"No triple has words that all occur {MIN_COUNT} times in the training text."]
    right = ", ".join(
        f"{sum(each.related > each.unrelated for each in judged)} by the {name}"
        for name, judged in by_method.items()
    )
    return [
        f"Triples of words, each the mean of {NUM_CONTEXTS} training spans that end with it (or of "
        f"its tokens' embeddings), less the mean of all words: of {len(own)} words so many are "
        f"nearer to the related one: {right}; a coin would be right in half. Triples share words, "
        "so that they are fewer than they look.",
        page.table(
            ["word", "related", "unrelated", "counts", *by_method],
            [
                [
                    *each[0].triple,
                    ", ".join(f"{count:,}" for count in each[0].counts),
                    *(f"{judged.related:.3f}, {judged.unrelated:.3f}" for judged in each),
                ]
                for each in zip(*by_method.values(), strict=True)
            ],
        ),
    ]


def main(directory: pathlib.Path, run: Opened) -> None:
    """Prints the page."""
    console = rich_console.Console()
    console.print(rich_markdown.Markdown(write(directory, run, measure(run))))


if __name__ == "__main__":
    _WORKDIR = settings.workdir_flag()
    settings.run_app(main, _WORKDIR, lambda: open_run(_WORKDIR()))
