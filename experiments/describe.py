"""Prints what the model of a config file holds and costs; allocates nothing.

Run: python -m experiments.describe --config=experiments/configs/r1_12b.py:top2
     python -m experiments.describe --config=experiments/configs/r1_12b.py \
       --config.mesh.expert=8 --config.mesh.data=8 --config.train.batch_size=256

With a mesh it also prints the bytes of each of its devices and of each collective.
"""

import dataclasses
from typing import get_args

import rich.console
import rich.table

from deepseek_jax.core import accounting
from deepseek_jax.core.model_spec import ModelSpec, Remat
from deepseek_jax.core.run_spec import RunSpec
from experiments import numbers, settings

# What the article says of its model: 2% of the parameters, about 256 M, for each token.
ARTICLE_SHARE_PERCENT = 2.0
_PART_NAMES = {
    "embedding": "input embedding",
    "head": "output head",
    "attention": "attention projections",
    "summaries": "block summaries",
    "norms": "norms",
    "router": "router",
    "experts": "routed experts",
    "shared_experts": "shared experts",
}


def main(run_spec: RunSpec) -> None:
    """Prints the tables."""
    spec = run_spec.model
    console = rich.console.Console(highlight=False)
    shown = [parameters_table(spec), memory_table(spec), flops_table(run_spec)]
    lines = sentences(spec)
    if run_spec.mesh.num_devices > 1:
        # Here, so that a model on one device is described without loading jax.
        from experiments import mesh_tables

        # Its tables are cut nowhere: a narrow terminal breaks the lines.
        console.width = max(console.width, mesh_tables.WIDTH)
        shown += mesh_tables.tables(run_spec)
        lines += mesh_tables.sentences(run_spec)
    for table in shown:
        console.print(table)
        console.print()
    for sentence in lines:
        console.print(f"- {sentence}")


def parameters_table(spec: ModelSpec) -> rich.table.Table:
    """Parameters by part, and how many of them are active for a token."""
    count = accounting.count_parameters(spec)
    table = numbers.table("Parameters", "part", "total", "active per token")
    for name, part in count.parts.items():
        if part.total:
            label = "feed-forward" if name == "experts" and spec.is_dense else _PART_NAMES[name]
            table.add_row(label, f"{part.total:,}", f"{part.active:,}")
    table.add_section()
    table.add_row("all", f"{count.total:,}", f"{count.active:,}", style="bold")
    table.add_row("", numbers.human_count(count.total), numbers.human_count(count.active))
    table.add_row("share of the total", "", f"{100 * count.active_share:.1f}%")
    return table


def memory_table(spec: ModelSpec) -> rich.table.Table:
    """Bytes of the parameters and of one sequence's cache, and what kernels of experts keep."""
    total = accounting.count_parameters(spec).total
    full = full_attention(spec)
    table = numbers.table("Memory", "", "float32", "bfloat16")
    table.add_row("parameters", numbers.human_bytes(4 * total), numbers.human_bytes(2 * total))
    for label, model in (
        (f"KV cache, {spec.context_length:,} tokens", spec),
        ("the same with full attention", full),
    ):
        cached = [accounting.cache_bytes(model, bytes_per_element=size) for size in (4, 2)]
        table.add_row(label, *map(numbers.human_bytes, cached))
    if spec.expert_kernel != "loop" and spec.dispatch == "dropless":
        for remat in get_args(Remat):
            kept = [
                accounting.kept_by_experts(spec, remat=remat, bytes_per_element=size)
                for size in (4, 2)
            ]
            label = f"a layer's kernels keep a token, remat={remat}"
            table.add_row(label, *map(numbers.human_bytes, kept))
    return table


def flops_table(run_spec: RunSpec) -> rich.table.Table:
    """Operations for one token, generating and training; the last column is full attention."""
    spec, length = run_spec.model, run_spec.data.sequence_length
    table = numbers.table(
        "FLOPs a token", "generating", "matrices", "attention", "summaries", "all", "if full"
    )
    last = spec.context_length - 1
    for position in sorted({0, spec.block_size - 1, last // 2, last}):
        here = accounting.forward_flops(spec, position=position)
        full = accounting.forward_flops(full_attention(spec), position=position)
        row = [numbers.human_flops(flops) for flops in (*here, here.total, full.total)]
        table.add_row(f"token {position + 1:,}", *row)
    table.add_section()
    mean = accounting.mean_forward_flops(spec, length=length)
    trained = [numbers.human_flops(accounting.TRAINING_PASSES * flops) for flops in mean]
    table.add_row(
        f"training, {length:,}",
        *trained,
        numbers.human_flops(accounting.training_flops(spec, length=length)),
        numbers.human_flops(accounting.training_flops(full_attention(spec), length=length)),
    )
    recomputed = accounting.recomputed_flops(spec, length=length)
    if recomputed:
        table.add_row("recomputed (remat)", "", "", "", numbers.human_flops(recomputed), "")
    return table


def sentences(spec: ModelSpec) -> list[str]:
    """The conventions behind the tables, and what becomes of the article's claim."""
    count = accounting.count_parameters(spec)
    other = f"{numbers.human_count(count.active_with_embedding)} with the whole table"
    lines = [
        "Active: the input embedding is a lookup of one row, so its table does not count; "
        + (
            "here it is also the output head, so it does."
            if spec.tie_embeddings
            else f"the output head does ({other})."
        ),
        "FLOPs: two for a multiply-add, useful ones only (nothing for masked or padded work); "
        "training is three forward passes, averaged over rows of the length named.",
    ]
    if spec.is_dense:
        return [*lines, "Dense: every parameter but a looked-up table is active for every token."]
    of_experts = 100 * spec.top_k / spec.num_experts
    share = 100 * count.active_share
    lines.append(
        f"Top-{spec.top_k} of {spec.num_experts} alone is {of_experts:.1f}% of the routed "
        f"experts' weights; with all that every token visits, "
        f"{numbers.human_count(count.active)} of {numbers.human_count(count.total)} are active, "
        f"{share:.1f}%."
    )
    if of_experts > ARTICLE_SHARE_PERCENT:
        verdict = "cannot hold here: the chosen experts alone are more than that."
    elif round(share, 1) <= ARTICLE_SHARE_PERCENT:
        verdict = "holds here."
    else:
        verdict = "does not hold here, though the chosen experts alone are less than that."
    lines.append(f"The article's 2% of active parameters (about 256 M of 12.8 B) {verdict}")
    return lines


def full_attention(spec: ModelSpec) -> ModelSpec:
    """The same model with full causal attention."""
    return dataclasses.replace(spec, attention="full", num_summaries=0)


if __name__ == "__main__":
    settings.run_app(main, settings.config_flag())
