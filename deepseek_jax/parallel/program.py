"""What a compiled program sends between devices, read from its text. Floor 2.

The text is that of `jax.jit(f).lower(...).compile().as_text()`: one device's part of the
program, after the compiler has put in every collective.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_BYTES = {"pred": 1, "c64": 8, "c128": 16}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:to_apply|calls|body|condition|\w+_computations?)=(%[\w.\-]+|\{[^}]*\})")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """One kind of transfer in the program.

    Attributes:
      kind: of `KINDS`.
      shapes: of what a device holds afterwards, e.g. ("f32[16,24]",); an all-to-all or a
        combined all-reduce has several.
      num_bytes: of all these shapes, once.
      group_size: devices that take part with each other; 0 where the text doesn't say.
      num_runs: how often it runs, with the trips of the loops that it stands in.
      scope: where in the source it came from (`jax.named_scope` and names of modules).
    """

    kind: str
    shapes: tuple[str, ...]
    num_bytes: int
    group_size: int
    num_runs: int
    scope: str


def collectives(text: str) -> list[Collective]:
    """Every collective of a compiled program that has more than one device in a group.

    Raises:
      ValueError: the text has no computations: it is not that of a compiled program; or a
        collective stands in a loop whose number of trips the compiler does not know, or holds
        a type that is not known here.
    """
    computations = dict(_computations(text))
    if not computations:
        raise ValueError("not the text of a compiled program: it has no computations")
    trips = _runs(text, computations)
    found = []
    for name, lines in computations.items():
        for line in lines:
            match = _COLLECTIVE.search(line)
            if match:
                if trips[name] is None:
                    raise ValueError(f"a collective in a loop without a known end: {line}")
                found.append(_parsed(line, match, num_runs=trips[name] or 0))
    return [one for one in found if one.num_runs and one.group_size != 1]


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    """Name and instructions of each computation."""
    name: str | None = None
    lines: list[str] = []
    for line in text.splitlines():
        start = _COMPUTATION.match(line)
        if start:
            name, lines = start[1], []
        elif line == "}" and name is not None:
            yield name, lines
            name = None
        elif name is not None:
            lines.append(line)


def _runs(text: str, computations: dict[str, list[str]]) -> dict[str, int | None]:
    """How often each computation runs; None where a loop's trips are not known."""
    entry = re.search(r"^ENTRY %?([\w.\-]+) ", text, re.MULTILINE)
    if entry is None:
        raise ValueError("not the text of a compiled program: it has no ENTRY computation")
    runs: dict[str, int | None] = dict.fromkeys(computations, 0)

    def visit(name: str, times: int | None) -> None:
        before = runs[name]
        runs[name] = None if before is None or times is None else before + times
        for line in computations[name]:
            for called in _CALLED.findall(line):
                inner = times
                if " while(" in line:
                    known = _TRIPS.search(line)
                    inner = times * int(known[1]) if known and times is not None else None
                for one in re.findall(r"[\w.\-]+", called):
                    if one in computations:
                        visit(one, inner)

    visit(entry[1], 1)
    return runs


def _parsed(line: str, match: re.Match[str], *, num_runs: int) -> Collective:
    shapes = [(kind, sizes) for kind, sizes in _SHAPE.findall(match[1])]
    # A transfer that is started and awaited apart: (operands, results, u32[] contexts), but the
    # results alone where it is a sum.
    if "-start(" in line and match[2] != "all-reduce":
        arrays = [shape for shape in shapes if shape != ("u32", "")]
        shapes = arrays[len(arrays) // 2 :]
    if not shapes:
        raise ValueError(f"a collective without a shape: {line}")
    scope = re.search(r'op_name="([^"]*)"', line)
    return Collective(
        kind=match[2],
        shapes=tuple(f"{kind}[{sizes}]" for kind, sizes in shapes),
        num_bytes=sum(_num_bytes(kind, sizes) for kind, sizes in shapes),
        group_size=_group_size(line),
        num_runs=num_runs,
        scope=scope[1] if scope else "",
    )


def _num_bytes(kind: str, sizes: str) -> int:
    bits = re.search(r"\d+", kind)
    if kind not in _BYTES and not bits:
        raise ValueError(f"a collective of an unknown type: {kind}[{sizes}]")
    per_element = _BYTES[kind] if kind in _BYTES or not bits else max(1, int(bits[0]) // 8)
    return per_element * math.prod(int(size) for size in sizes.split(",") if size)


def _group_size(line: str) -> int:
    """The devices of a group, in the three ways that compilers write groups.

    `{{0,1},{2,3}}`, `[2,2]<=[4]` (groups, devices of each), and axes of a mesh by name,
    `mesh['a'=2,'b'=2] {'b'}`.
    """
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return len(listed[1].split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    if iota:
        return int(iota[2])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if not named:
        return 0
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
