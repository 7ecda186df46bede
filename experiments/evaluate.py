"""Measures a run on held-out text and writes its report.

Run: python -m experiments.evaluate --workdir=runs/demo
     python -m experiments.evaluate --workdir=runs/zero/seed_0/ppo --config.eval.task=arithmetic

Prints bits per byte beside those of a bigram model, gzip and xz; writes `report.md`,
`report.json` and the plots into the run's directory. With `eval.task` it answers problems of
that task instead, and prints the accuracy with its interval (`evaluate_task`).
"""

import functools
import itertools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import config_dict, config_flags
from rich import console as rich_console
from rich import markdown as rich_markdown

from deepseek_jax.core import accounting
from deepseek_jax.core import config as core_config
from deepseek_jax.core.stage_spec import TaskEvalSpec
from deepseek_jax.data.text_data import TextData
from deepseek_jax.evaluation import (
    baselines,
    expert_usage,
    findings,
    heldout,
    history,
    plots,
    report,
)
from deepseek_jax.nn.model import Decoder
from deepseek_jax.ops import balance
from deepseek_jax.training import workdir as workdir_lib
from experiments import evaluate_task, presets, settings, trained

_BOOTSTRAP_SEED = 0


def measure(run: trained.Trained, workdir: pathlib.Path) -> findings.Findings:
    """Everything that the report says of a run; writes its plots.

    Raises:
      ValueError: the installed text is not the one that the run was trained on.
    """
    started = time.perf_counter()
    spec = run.run_spec
    data = workdir_lib.load_data(workdir, spec)
    records = trained.read_metrics(workdir, step=run.step)
    chosen = heldout.make(
        data.heldout,
        data.heldout_kind_ids,
        run.tokenizer.token_byte_lengths,
        bos_id=run.tokenizer.bos_id,
        num_rows=spec.eval.num_rows,
    )
    terms = heldout.target_terms(
        functools.partial(_logits, run.model),
        run.variables,
        chosen.rows,
        batch_size=spec.eval.batch_size,
    )
    model_bits = heldout.document_bits(chosen, terms)
    rivals = baselines.measure(
        data.train, chosen, run.tokenizer.token_bytes, bos_id=run.tokenizer.bos_id
    )
    scores = findings.score_baselines(model_bits, rivals, seed=_BOOTSTRAP_SEED)
    experts = None if spec.model.is_dense else _experts(run, chosen)
    made_plots = _plots(workdir, records, data, scores, experts)
    return findings.Findings(
        run=_run_facts(workdir, records, seconds=time.perf_counter() - started),
        corpus=_corpus_facts(run, data, num_heldout=len(chosen.num_bytes)),
        parameters=_parameters(run),
        heldout=heldout.summarize(chosen, terms, seed=_BOOTSTRAP_SEED),
        scores=scores,
        experts=experts,
        samples=_samples(run),
        plots=made_plots,
    )


def main(workdir: pathlib.Path, run: trained.Trained) -> None:
    """Measures, writes the report and prints it."""
    report.write(measure(run, workdir), workdir)
    console = rich_console.Console()
    console.print(rich_markdown.Markdown((workdir / "report.md").read_text(encoding="utf-8")))
    console.print(f"report: {workdir / 'report.md'}", soft_wrap=True)


def _logits(model: Decoder, variables: Any, batch: heldout.Batch) -> jax.Array:
    output: Any = model.apply(
        variables,
        batch["tokens"],
        document_ids=batch["document_ids"],
        positions=batch["positions"],
    )
    return output.logits


@functools.partial(jax.jit, static_argnums=0)
def _routing(
    model: Decoder, variables: Any, batch: heldout.Batch
) -> tuple[jax.Array, balance.RouterStats]:
    """Expert ids [layers, B, L, K] and statistics of a batch."""
    answer: Any = model.apply(
        variables,
        batch["tokens"],
        document_ids=batch["document_ids"],
        positions=batch["positions"],
        mutable=["intermediates"],
    )
    output, sown = answer
    (ids,) = sown["intermediates"]["layers"]["feed_forward"]["router"]["expert_ids"]
    return ids.reshape(ids.shape[0], *batch["tokens"].shape, ids.shape[-1]), output.stats


def _experts(run: trained.Trained, chosen: heldout.HeldoutSet) -> findings.Experts:
    """How the experts are used on held-out text."""
    spec = run.run_spec
    totals: list[balance.RouterStats] = []

    def expert_ids(batch: heldout.Batch) -> jax.Array:
        ids, stats = _routing(run.model, run.variables, batch)
        totals.append(stats)
        return ids

    usage = expert_usage.count(
        expert_ids,
        chosen,
        num_experts=spec.model.num_experts,
        batch_size=spec.eval.batch_size,
    )
    stats = jax.tree.map(lambda *parts: sum(parts[1:], start=parts[0]), *totals)
    return findings.Experts(
        num_experts=spec.model.num_experts,
        layers=findings.layers_health(stats),
        load_by_kind=expert_usage.load_by_kind(usage),
        information=expert_usage.kind_information(usage, seed=_BOOTSTRAP_SEED),
    )


def _plots(
    workdir: pathlib.Path,
    records: list[dict[str, Any]],
    data: TextData,
    scores: tuple[findings.Score, ...],
    experts: findings.Experts | None,
) -> tuple[findings.Plot, ...]:
    """Draws what there is to draw."""
    num_bytes = sum(
        count.num_bytes for name, count in data.record.kept.items() if name.startswith("train/")
    )
    curves = history.from_records(
        records, train_bytes_per_target=num_bytes / int(data.train.target_mask.sum())
    )
    lines = {score.name: score.bits_per_byte.value for score in scores}
    plots.loss_curve(workdir / "loss.png", curves, baselines=lines)
    made = [findings.Plot("loss.png", "Bits per byte while training, and of the baselines.")]
    if experts is None or curves.router is None:
        return tuple(made)
    plots.expert_load(workdir / "expert_load.png", experts.load_by_kind)
    made.append(findings.Plot("expert_load.png", "Load of each expert on held-out text."))
    if experts.information is not None:
        plots.kind_information(workdir / "expert_kind.png", experts.information)
        caption = "What the experts of a layer tell of the kind of text."
        made.append(findings.Plot("expert_kind.png", caption))
    plots.router_health(workdir / "router.png", curves.router, num_experts=experts.num_experts)
    made.append(findings.Plot("router.png", "The router while training."))
    return tuple(made)


def _run_facts(
    workdir: pathlib.Path, records: list[dict[str, Any]], *, seconds: float
) -> findings.Run:
    record = json.loads((workdir / "record.json").read_text(encoding="utf-8"))
    setups = [start["made_with"] for start in workdir_lib.starts(record)]
    names = ("device_kind", "num_devices", "mesh", "num_processes")
    devices = [_devices(*(setup[name] for name in names)) for setup in setups]
    versions = {name: version for name, version in setups[-1].items() if name not in names}
    last = [line for line in records if "tokens" in line][-1]
    return findings.Run(
        name=workdir.name,
        command=record["command"],
        versions=versions,
        device=", then ".join(name for name, _ in itertools.groupby(devices)),
        num_steps=last["step"],
        num_tokens=last["tokens"],
        train_seconds=last["seconds"],
        evaluation_seconds=seconds,
    )


def _devices(kind: str, count: int, mesh: str, num_processes: int) -> str:
    """What one start of a run trained on."""
    name = f"{count} x {kind}"
    return f"{name} (mesh {mesh}, processes: {num_processes})" if count > 1 else name


def _corpus_facts(run: trained.Trained, data: TextData, *, num_heldout: int) -> findings.Corpus:
    train = [count for name, count in data.record.kept.items() if name.startswith("train/")]
    return findings.Corpus(
        source=data.record.source,
        sha256=data.record.sha256,
        num_train_documents=sum(count.num_documents for count in train),
        num_train_bytes=sum(count.num_bytes for count in train),
        num_train_targets=int(np.sum(data.train.target_mask)),
        num_heldout_documents=num_heldout,
        vocab_size=run.tokenizer.vocab_size,
    )


def _parameters(run: trained.Trained) -> dict[str, int]:
    count = accounting.count_parameters(run.run_spec.model)
    return {"total": count.total, "active": count.active}


def _samples(run: trained.Trained) -> tuple[findings.Sample, ...]:
    """The prompt of the settings continued greedily, and at the settings' temperature."""
    spec = run.run_spec.eval
    samples = []
    for temperature in sorted({0.0, spec.temperature}):
        pieces = trained.continuation(
            run,
            spec.prompt,
            jax.random.key(run.run_spec.seed),
            max_new_tokens=spec.sample_tokens,
            temperature=temperature,
            top_p=1.0,
        )
        samples.append(findings.Sample(spec.prompt, "".join(pieces)))
    return tuple(samples)


def task_flags() -> Callable[[], TaskEvalSpec]:
    """Defines the settings of `config.eval`; returns what reads them."""
    values = dict(size=3, num_problems=1000, temperature=1.0, max_new_tokens=36)
    defaults = config_dict.ConfigDict(dict(eval=dict(task=presets.optional(), **values)))
    holder = config_flags.DEFINE_config_dict("config", defaults, lock_config=True)
    return lambda: core_config.from_config(TaskEvalSpec, holder.value.eval.to_dict(), where="eval")


def _measurement(workdir: pathlib.Path, step: int | None, spec: TaskEvalSpec) -> Callable[[], None]:
    """What the flags ask for, with everything opened that may be missing or wrong."""
    if spec.task is None:
        return functools.partial(main, workdir, trained.open_run(workdir, step=step))
    listed = evaluate_task.problems(spec)
    model, rollout = evaluate_task.open_run(workdir, listed, spec, step=step)
    return functools.partial(
        evaluate_task.main, model, listed, rollout, temperature=spec.temperature
    )


if __name__ == "__main__":
    _DIRECTORY, _STEP, _TASK = settings.workdir_flag(), settings.step_flag(), task_flags()
    settings.run_app(
        lambda measurement: measurement(), lambda: _measurement(_DIRECTORY(), _STEP(), _TASK())
    )
