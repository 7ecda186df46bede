"""The tables of `benchmarks.expert_parallel_scale`, which counts what they show."""

from typing import Any

import rich.table
from rich import console as rich_console

from experiments import numbers

Records = list[dict[str, Any]]


def show_model(
    console: rich_console.Console,
    name: str,
    figures: dict[str, Any],
    num_tokens: int,
    share_of_peak: float,
) -> None:
    """Bytes, visits and seconds of one model."""
    shown = [
        _bytes(name, figures["bytes"], num_tokens),
        _visits(f"{name}: devices a token, by groups chosen", figures, "groups"),
        _visits(f"{name}: devices a token, by experts of a token", figures, "experts"),
        _nodes(name, figures["by_node"]),
        _times(name, figures["times"], num_tokens, share_of_peak),
    ]
    for table in shown:
        console.print(table)
    console.print(
        "Devices a token: expected if no expert is liked better than others. Once a device, K "
        "rows, all-gather: rows there and back, forward, none empty. Sent: with empty rows (x1.25 "
        "of the expected number, or exact), ids and weights. Machines a token: of 8 devices.\n"
    )


def show_skew(console: rich_console.Console, records: Records, num_tokens: int) -> None:
    """Loads under Zipf's law."""
    table = numbers.table(
        f"r1_12b: normal logits, less s log(rank of the expert), {num_tokens:,} tokens a device",
        "s",
        "devices",
        "devices a token",
        "busiest gets",
        *_overflow_columns(records),
    )
    for record in records:
        table.add_row(
            f"{record['zipf']:g}",
            f"{record['devices']:,}",
            f"{record['visits']:.3f}",
            f"{record['uneven_received']:.2f} x mean",
            *_overflow(record),
        )
    console.print(table)
    console.print("Overflow: share of rows that find no room, by rows_factor.\n")


def show_trained(console: rich_console.Console, figures: dict[str, Any]) -> None:
    """Loads of a trained router."""
    name = figures["run"]
    table = numbers.table(
        f"{name}, step {figures['step']}: {figures['num_tokens']:,} held-out tokens",
        "router",
        "devices",
        "tokens a device",
        "devices a token",
        "expected",
        "one sends",
        "busiest gets",
        *_overflow_columns(figures["loads"]),
    )
    shown = None
    for record in figures["loads"]:
        if shown not in (None, record["router"]):
            table.add_section()
        shown = record["router"]
        table.add_row(
            record["router"],
            f"{record['devices']:,}",
            f"{record['tokens']:,}",
            f"{record['visits']:.3f}",
            f"{figures['expected_visits'][record['devices']]:.3f}",
            f"{record['uneven_sent']:.2f} x mean",
            f"{record['uneven_received']:.2f} x mean",
            *_overflow(record),
        )
    console.print(table)
    console.print(
        "Random: scores that know nothing. Expected: if no expert is liked better than others. "
        "One sends: rows of one device to its busiest destination. Overflow by rows_factor, over "
        "the expected number.\n"
    )
    if not figures["by_groups"]:
        console.print("Other limits of groups are left out: this router's choice bias is no score.")
        return
    model = figures["model"]
    limits = numbers.table(
        f"{name}: devices a token by the same scores, from more or fewer of "
        f"{model['num_groups']} groups (the run chose from {model['top_groups']})",
        "router",
        "groups",
        *(f"P={count}" for count in figures["by_groups"][0]["visits"]),
    )
    shown = None
    for record in figures["by_groups"]:
        if shown not in (None, record["router"]):
            limits.add_section()
        shown = record["router"]
        limits.add_row(
            record["router"],
            str(record["top_groups"]),
            *(f"{visits:.3f}" for visits in record["visits"].values()),
        )
    console.print(limits)


def _bytes(name: str, records: Records, num_tokens: int) -> rich.table.Table:
    table = numbers.table(
        f"{name}: bytes that leave a device for a token and layer, bf16, {num_tokens:,} tokens",
        "devices",
        "mesh",
        "devices a token",
        "once a device",
        "K rows",
        "all-gather",
        "of K rows",
        "sent, x1.25",
        "sent, exact",
        "and backward, x1.25",
    )
    for record in records:
        forward = record["forward"]
        sizes = [numbers.human_bytes(forward[key]) for key in ("once", "by_expert", "all_gather")]
        sent = [numbers.human_bytes(forward[key]) for key in ("sent", "exact")]
        table.add_row(
            f"{record['devices']:,}",
            record["mesh"],
            f"{record['visits']:.3f}",
            *sizes,
            f"{forward['once'] / forward['by_expert']:.1%}",
            *sent,
            numbers.human_bytes(record["forward_and_backward"]),
        )
    return table


def _visits(title: str, figures: dict[str, Any], what: str) -> rich.table.Table:
    records = figures[f"by_{what}"]
    field = next(iter(records[0]))
    table = numbers.table(title, what, *(f"P={count}" for count in records[0]["visits"]))
    for record in records:
        table.add_row(
            str(record[field]), *(f"{visits:.3f}" for visits in record["visits"].values())
        )
    return table


def _nodes(name: str, records: Records) -> rich.table.Table:
    table = numbers.table(
        f"{name}: bytes of rows over InfiniBand for a token and layer, forward, machines of 8",
        "devices",
        "groups a machine",
        "devices a token",
        "machines a token",
        "once a device (ours)",
        "once a machine",
        "saved",
    )
    for record in records:
        table.add_row(
            f"{record['devices']:,}",
            f"{record['groups_a_node']:g}",
            f"{record['devices_visited']:.3f}",
            f"{record['nodes_visited']:.3f}",
            numbers.human_bytes(record["bytes_once_a_device"]),
            numbers.human_bytes(record["bytes_once_a_node"]),
            f"{record['saved']:.1%}",
        )
    return table


def _times(name: str, records: Records, num_tokens: int, share: float) -> rich.table.Table:
    table = numbers.table(
        f"{name}: ms of one sparse layer in training, {num_tokens:,} tokens a device, matmuls at "
        f"{share:.0%} of peak, x1.25",
        "machine",
        "devices",
        "mesh",
        "compute",
        "wires",
        "wires / compute",
        "limit",
    )
    for record in records:
        wires = ", ".join(
            f"{kind} {1e3 * seconds:.2f}" for kind, seconds in record["wire_seconds"].items()
        )
        table.add_row(
            record["machine"],
            f"{record['devices']:,}",
            record["mesh"],
            f"{1e3 * record['compute_seconds']:.2f}",
            wires,
            f"{record['ratio']:.2f}",
            record["limit"],
        )
    return table


def _overflow_columns(records: Records) -> list[str]:
    return [f"x{factor:g}" for factor in records[0]["overflow"]]


def _overflow(record: dict[str, Any]) -> list[str]:
    return [f"{share:.2%}" for share in record["overflow"].values()]
