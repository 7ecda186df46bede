"""Numbers with their units, and tables of them, for what is shown to a person."""

import rich.box
import rich.table


def human_count(count: float) -> str:
    """A count with its unit, e.g. "12.8 B" or "260.4 M"."""
    return _scaled(count, 1000.0, ("", " k", " M", " B", " T"))


def human_flops(count: float) -> str:
    """Operations with their unit, e.g. "712.1 M" or "1.6 G"."""
    return _scaled(count, 1000.0, ("", " k", " M", " G", " T"))


def human_bytes(count: float) -> str:
    """Bytes with a binary unit, e.g. "23.8 GiB"."""
    return _scaled(count, 1024.0, (" B", " KiB", " MiB", " GiB", " TiB"))


def _scaled(count: float, base: float, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if round(count, 1) < base:
            return f"{count:.0f}{unit}" if unit == units[0] else f"{count:.1f}{unit}"
        count /= base
    return f"{count:.1f}{units[-1]}"


def table(title: str, first: str, *columns: str) -> rich.table.Table:
    """An empty table whose columns but the first hold numbers."""
    made = rich.table.Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD)
    made.add_column(first, no_wrap=True)
    for column in columns:
        made.add_column(column, justify="right", no_wrap=True)
    return made
