"""Descriptions in a file, measured by the program that a user starts; bad lines are refused."""

import json
import subprocess
import sys

import pytest
from rich import console as rich_console

from deepseek_jax.steering import stage
from tests.steering import tiny

pytestmark = pytest.mark.deep

SPEC = tiny.spec(**{"train.num_steps": 2})
GOOD = '{"task": "reverse", "description": "write the digits backwards"}'


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "steering"
    stage.train(SPEC, directory, console=rich_console.Console(quiet=True))
    return directory


def measured(run, path):
    command = [sys.executable, "-m", "experiments.steering", f"--workdir={run}"]
    return subprocess.run(
        [*command, f"--descriptions={path}"], capture_output=True, text=True, check=False
    )


def test_descriptions_of_both_kinds_of_files_are_measured(run, tmp_path):
    lines = {
        "a.jsonl": [GOOD, '{"task": "sum", "description": "caf\u00e9 | add up"}'],
        "a.txt": ["write the digits backwards", "caf\u00e9 | add up"],
    }
    stored = {}
    for name, listed in lines.items():
        (tmp_path / name).write_text("\n".join(listed) + "\n", encoding="utf-8")
        done = measured(run, tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == (run / "steering.md").read_text().strip()
        rows = done.stdout.partition("## Your descriptions")[2].strip().splitlines()[2:]
        assert [row.split(" | ")[0] for row in rows] == [
            "| write the digits backwards",
            "| caf\u00e9 \\| add up",
        ]
        stored[name] = json.loads((run / "steering.json").read_text())["followed"]
    told, untold = stored.values()
    assert [one["meant"] for one in told] == ["reverse", "sum"]
    assert [(one["meant"], one["right"]) for one in untold] == [(None, None)] * 2
    for one, other in zip(told, untold, strict=True):
        assert one["right"]["num"] == SPEC.tasks.num_heldout
        assert one["right"]["drawn"] == "inputs"
        assert one["right"]["value"] <= one["share"]["value"]
        assert one == other | {"meant": one["meant"], "right": one["right"]}


BAD = {
    "empty": (f"{GOOD}\n\n{GOOD}\n".encode(), "2: the description is empty"),
    "too long": (
        json.dumps({"task": "sum", "description": 81 * "a"}).encode(),
        "1: the description has 81 tokens; vector.description_length=80 is the most",
    ),
    "unknown task": (
        f"{GOOD}\n{GOOD.replace('reverse', 'rewind')}".encode(),
        "2: unknown task 'rewind'; known: sum, largest",
    ),
    "a composition that is no task of this training": (
        GOOD.replace("reverse", "reverse+rotate").encode(),
        "1: unknown task 'reverse+rotate'",
    ),
    "not UTF-8": (f"{GOOD}\n".encode() + b"\xff\xfe", "2: not UTF-8: byte 1 is 0xff"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_is_one_line_before_anything_is_measured(run, tmp_path, kind):
    content, message = BAD[kind]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    refused = measured(run, path)
    assert refused.returncode == 2 and not refused.stdout
    assert refused.stderr.startswith(f"error: {path}:{message}")
    assert refused.stderr.count("\n") == 1
