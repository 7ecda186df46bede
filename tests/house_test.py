"""Rules of the house that hold on sources and documents, not on numbers."""

import ast
import functools
import importlib.util
import pathlib
import re
from collections.abc import Iterator

import pytest

from deepseek_jax.core import accounting
from experiments import numbers, settings

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "deepseek_jax"
PYTHON = sorted(
    [
        ROOT / "setup.py",
        *(
            path
            for folder in ("deepseek_jax", "experiments", "benchmarks", "tests", "tools")
            for path in (ROOT / folder).rglob("*.py")
        ),
    ]
)
LIBRARY = [path for path in PYTHON if path.is_relative_to(PACKAGE)]
EXPERIMENTS = [path for path in PYTHON if path.is_relative_to(ROOT / "experiments")]
BENCHMARKS = [path for path in PYTHON if path.is_relative_to(ROOT / "benchmarks")]
SCRIPTS = [ROOT / "Makefile", ROOT / ".ci" / "run", *sorted((ROOT / "tools").glob("*.sh"))]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CONFIGS = ROOT / "experiments" / "configs"
SPEC_FILES = sorted((PACKAGE / "core").glob("*_spec.py"))
SETTINGS = re.compile(r"(^|_)(spec|config|cfg|settings)$")
FLOORS = {
    "core": 0,
    "ops": 1,
    "objectives": 1,
    "data": 1,
    "parallel": 2,
    "nn": 3,
    "decoding": 4,
    "training": 5,
    "evaluation": 5,
    "contrastive": 6,
    "reinforcement": 6,
    "steering": 6,
}


def relative(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def spec_fields() -> dict[str, dict[str, str]]:
    """Field name -> annotation, by spec class."""
    fields: dict[str, dict[str, str]] = {}
    for path in SPEC_FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                fields[node.name] = {
                    item.target.id: ast.unparse(item.annotation)
                    for item in node.body
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                }
    return fields


SPECS = spec_fields()
# The settings below each node of a config file, whichever kind of run the file is for.
NODES: dict[str, set[str]] = {"eval": set(SPECS["TaskEvalSpec"])}
for spec_name, spec_of_run in SPECS.items():
    if spec_name.endswith("RunSpec"):
        for node_name, kind in spec_of_run.items():
            if kind in SPECS:
                NODES.setdefault(node_name, set()).update(SPECS[kind])


def last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def is_settings(node: ast.expr) -> bool:
    return bool(SETTINGS.search(last_name(node))) or last_name(node) in NODES


@functools.cache
def settings_read(path: pathlib.Path) -> set[str]:
    """Every X that a file reads as spec.X, some_spec.X or NODE.X."""
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and is_settings(node.value)
    }


def hidden_defaults(source: str) -> list[int]:
    """Lines that read a setting with a default: spec.get(...), getattr(spec, name, other)."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            by_get = isinstance(node.func, ast.Attribute) and node.func.attr == "get"
            by_getattr = last_name(node.func) == "getattr" and len(node.args) == 3
            owner = node.func.value if by_get else node.args[0] if by_getattr else None  # type: ignore[attr-defined]
            if owner is not None and is_settings(owner):
                lines.append(node.lineno)
    return lines


def swallowed_errors(source: str) -> list[int]:
    """Lines of handlers that catch everything and go on."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or last_name(node.type) in ("Exception", "BaseException"))
        and all(isinstance(item, (ast.Pass, ast.Continue)) for item in node.body)
    ]


FIELDS = [
    pytest.param(spec, name, id=f"{spec}.{name}")
    for spec, fields in SPECS.items()
    for name in fields
]


@pytest.mark.parametrize(("spec", "name"), FIELDS)
def test_every_setting_is_read(spec: str, name: str) -> None:
    readers = [path for path in [*LIBRARY, *EXPERIMENTS] if path not in SPEC_FILES]
    assert any(
        name in settings_read(path)
        for path in readers
        if not path.is_relative_to(CONFIGS)  # to state a setting is not to read it
    ), f"nothing reads {spec}.{name}"


@pytest.mark.parametrize("path", [*LIBRARY, *EXPERIMENTS], ids=relative)
def test_no_setting_has_a_hidden_default(path: pathlib.Path) -> None:
    assert not hidden_defaults(path.read_text())


def test_a_hidden_default_is_found() -> None:
    for line in ("config.model.get('top_k', 2)", "getattr(self.spec, 'top_k', 2)"):
        assert hidden_defaults(line) == [1]
    assert not hidden_defaults("os.environ.get('X'); getattr(spec, name); table.get(1)")


@pytest.mark.parametrize("path", [path for path in PYTHON if path not in SPEC_FILES], ids=relative)
def test_no_error_is_swallowed(path: pathlib.Path) -> None:
    assert not swallowed_errors(path.read_text())


@pytest.mark.parametrize("path", LIBRARY, ids=relative)
def test_the_docstring_names_the_floor(path: pathlib.Path) -> None:
    if path.parent != PACKAGE:
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert f"floor {FLOORS[path.relative_to(PACKAGE).parts[0]]}" in docstring.lower()


@pytest.mark.parametrize("path", [*PYTHON, *SCRIPTS, ROOT / "pyproject.toml"], ids=relative)
def test_code_is_ascii_and_finished(path: pathlib.Path) -> None:
    text = path.read_text(encoding="ascii")
    unfinished = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX", r"\bHA" + "CK")))
    assert not unfinished.findall(text)


@pytest.mark.parametrize("path", [*PYTHON, *SCRIPTS, *DOCUMENTS], ids=relative)
def test_no_path_of_one_machine(path: pathlib.Path) -> None:
    folders = "|".join(("wo" + "rk", "ro" + "ot", "ho" + "me", "Use" + "rs"))
    assert not re.findall(rf"(?<![\w./])/(?:{folders})/", path.read_text())


def headings(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_resolve(path: pathlib.Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        document = path.parent / file if file else path
        assert document.exists(), f"link to {target}"
        assert not anchor or anchor in headings(document.read_text()), f"link to {target}"


def files_named(text: str) -> Iterator[str]:
    """Paths with a folder in them, in backticks; what a run writes is not in the repository."""
    for name in re.findall(r"`([\w.\-]+/[\w./\-]*)`", text):
        if not name.startswith(("runs/", ".venv/", ".cache/", "data/corpus.json")):
            yield name


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_files_named_in_documents_exist(path: pathlib.Path) -> None:
    for name in files_named(path.read_text()):
        places = [folder / f"{name}{end}" for folder in (ROOT, PACKAGE) for end in ("", ".py")]
        assert any(place.exists() for place in places), f"no file {name}"


@pytest.mark.parametrize("path", [*DOCUMENTS, *SCRIPTS, *EXPERIMENTS, *BENCHMARKS], ids=relative)
def test_commands_named_exist(path: pathlib.Path) -> None:
    text = path.read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^\s*)make ([a-z][a-z-]*)", text, re.MULTILINE)) <= targets
    for module in re.findall(r"python -m ([a-z_][\w.]*)", text):
        assert importlib.util.find_spec(module), f"no module {module}"
    for config in re.findall(r"experiments/configs/([\w/]+)\.py", text):
        assert config == "NAME" or (CONFIGS / f"{config}.py").is_file(), f"no config {config}"


@pytest.mark.parametrize("path", [*DOCUMENTS, *EXPERIMENTS], ids=relative)
def test_overrides_named_are_settings(path: pathlib.Path) -> None:
    for override in re.findall(r"--config\.([\w.]+)", path.read_text()):
        if override == "NODE.NAME":
            continue
        node, _, name = override.rpartition(".")
        known = NODES[node] if node else set(SPECS["RunSpec"])
        assert name in known, f"--config.{override}"


def test_the_presets_in_the_readme_are_those_of_the_configs() -> None:
    row = r"^\| `(\w+):?(\w*)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|[^|]+\| ([\d,]+) \|"
    rows = re.findall(row, (ROOT / "README.md").read_text(), re.MULTILINE)
    configs = {path.stem for path in CONFIGS.glob("[!_]*.py")}
    # A stage has the model of the run that it starts from.
    stages = {name for name in configs if "stage" in settings.load_config(f"{CONFIGS / name}.py")}
    assert {name for name, *_ in rows} == configs - stages
    for name, variant, *written in rows:
        spec = settings.freeze(settings.load_config(f"{CONFIGS / name}.py:{variant}")).model
        count = accounting.count_parameters(spec)
        assert written == [
            numbers.human_count(count.total),
            numbers.human_count(count.active),
            f"{100 * count.active_share:.1f}%",
            f"{spec.context_length:,}",
        ], name


def test_the_reading_line_is_one_and_its_files_exist() -> None:
    orders = []
    for path in (PACKAGE / "__init__.py", ROOT / "README.md"):
        line = re.search(r"`[\w/]+`(?:\s*->\s*`[\w/]+`){3,}", path.read_text())
        assert line, f"no reading line in {relative(path)}"
        orders.append(re.findall(r"`([\w/]+)`", line[0]))
    assert orders[0] == orders[1]
    missing = [
        name
        for name in orders[0]
        if not any((folder / f"{name}.py").is_file() for folder in (PACKAGE, ROOT))
    ]
    assert not missing
