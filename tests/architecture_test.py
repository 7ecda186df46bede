"""The floors of the house, checked on the source so that a lazy import cannot hide a circle."""

import ast
import pathlib
import re

import pytest

MAY_IMPORT: dict[str, set[str]] = {  # floor -> floors it may import; anything else is an error
    "core": set(),
    "ops": {"core"},
    "objectives": {"core", "ops"},
    "data": {"core"},
    "parallel": {"core", "ops"},
    "nn": {"core", "ops", "parallel"},
    "decoding": {"core", "ops", "parallel", "nn"},
    "training": {"core", "ops", "objectives", "data", "parallel", "nn", "decoding"},
    "evaluation": {"core", "ops", "objectives", "data", "parallel", "nn", "decoding"},
    **dict.fromkeys(
        ("contrastive", "reinforcement", "steering"),
        {
            "core",
            "ops",
            "objectives",
            "data",
            "parallel",
            "nn",
            "decoding",
            "training",
            "evaluation",
        },
    ),
}
TOP = ("experiments", "benchmarks")  # may import every floor; none of these may import them
# These know nothing of modules, optimizers and flags.
PURE = {"core", "ops", "objectives", "data", "parallel"}
FRAMEWORKS = {"flax", "optax", "ml_collections", "absl"}
MAX_LINES = 400
ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "deepseek_jax"
FILES = sorted(path for folder in ("deepseek_jax", *TOP) for path in (ROOT / folder).rglob("*.py"))
ALL_FILES = sorted([*FILES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "tools").glob("*.py")])


def relative(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(source: str) -> list[tuple[int, str]]:
    """(line, dotted name) of every import, wherever in the file it stands."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def floor_of(dotted: str) -> str | None:
    """The folder of deepseek_jax, or the top folder, that a dotted name belongs to."""
    head, _, rest = dotted.partition(".")
    if head == "deepseek_jax":
        return rest.partition(".")[0] or None
    return head if head in TOP else None


def is_module(dotted: str) -> bool:
    path = ROOT.joinpath(*dotted.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def violations(own: str | None, source: str) -> list[str]:
    """What is wrong with the imports of a file that stands on floor `own`."""
    wrong = []
    for line, name in imports(source):
        target, head = floor_of(name), name.partition(".")[0]
        if name.startswith("."):
            wrong.append(f"{line}: relative import {name}")
        elif head == "tests":
            wrong.append(f"{line}: {name}: only tests import tests")
        elif own in PURE and head in FRAMEWORKS:
            wrong.append(f"{line}: {own} knows nothing of {head}")
        elif target in TOP and own != target and (own, target) != ("benchmarks", "experiments"):
            wrong.append(f"{line}: {own} imports {name}")
        elif own in MAY_IMPORT and target not in {None, own} | MAY_IMPORT[own]:
            wrong.append(f"{line}: {own} imports {name}")
        elif head == "deepseek_jax" and target != own and not is_module(name):
            if name.rpartition(".")[2][0].islower():  # types and constants may come by name
                wrong.append(f"{line}: import the module, not {name}")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_only_from_floors_below(path: pathlib.Path) -> None:
    own = floor_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert not violations(own, path.read_text())


@pytest.mark.parametrize(
    ("own", "source"),
    [
        ("core", "import flax"),
        ("ops", "def f():\n    from deepseek_jax.nn import model"),
        ("objectives", "import deepseek_jax.nn.model"),
        ("data", "from absl import logging"),
        ("training", "from deepseek_jax.evaluation import report"),
        ("evaluation", "from deepseek_jax.training import loop"),
        ("training", "from experiments import main"),
        ("nn", "from . import model"),
        ("nn", "from deepseek_jax.ops.routing import top_k_routing"),
        ("experiments", "from benchmarks import moe_layer_cpu"),
        ("experiments", "from tests import tolerances"),
    ],
)
def test_a_wrong_import_is_found(own: str, source: str) -> None:
    assert len(violations(own, source)) == 1


def test_every_folder_has_a_floor() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders <= set(MAY_IMPORT)


def test_the_table_in_the_documents_is_the_one_checked() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| \d \| ([\w, ]+) \|", table, re.MULTILINE)
    assert {name: set(below.split(", ")) - {"nothing"} for name, below in rows} == MAY_IMPORT


def test_the_floors_have_no_circle() -> None:
    below: dict[str, set[str]] = {name: set() for name in MAY_IMPORT}
    for _ in MAY_IMPORT:
        for name, direct in MAY_IMPORT.items():
            below[name] = direct.union(*(below[other] for other in direct))
    assert not [name for name in MAY_IMPORT if name in below[name]]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=relative)
def test_init_files_hold_a_docstring_and_no_logic(path: pathlib.Path) -> None:
    body = ast.parse(path.read_text()).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)


def test_files_stay_small() -> None:
    sizes = {relative(path): len(path.read_text().splitlines()) for path in ALL_FILES}
    assert not {name: size for name, size in sizes.items() if size > MAX_LINES}


def test_shard_map_stands_on_its_own_floor() -> None:
    users = {relative(path) for path in FILES if "jax.shard_map(" in path.read_text()}
    owners = ("expert_parallel", "headwise", "rowwise", "whole_matrices")
    assert users == {f"deepseek_jax/parallel/{name}.py" for name in owners}


@pytest.mark.parametrize("path", ALL_FILES, ids=relative)
def test_the_replication_check_is_never_off(path: pathlib.Path) -> None:
    switch = r"check_" + r"(?:vma|rep)\s*="
    assert not re.findall(switch, path.read_text())
