"""The first stage: problems of every split and the unlabelled text, as files. Floor 6.

`text.jsonl` (documents of pretraining), `solutions.jsonl` (right worked solutions of the
policy's problems, for the supervised arm), `reward.jsonl`, `policy.jsonl`, `validation.jsonl`,
`test.jsonl` (problems) and `facts.json`, which is written last.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from deepseek_jax.core.stage_spec import ProblemsRunSpec, ProblemsSpec
from deepseek_jax.data.problems import files, splits, tasks, unlabelled
from deepseek_jax.data.problems.problem import Problem
from deepseek_jax.training import workdir

FACTS = "facts.json"


def write(spec: ProblemsRunSpec, directory: pathlib.Path) -> dict[str, Any]:
    """Draws and writes everything, unless the directory holds it already.

    Returns:
      What was written: counts, the share of documents that are right, hashes of the files.

    Raises:
      ValueError: the directory holds the problems of other settings, or a task has too few.
    """
    directory = pathlib.Path(directory)
    if (directory / FACTS).exists():
        workdir.check_config(directory / "config.json", spec)
        return read_facts(directory)
    directory.mkdir(parents=True, exist_ok=True)
    problems, task = spec.problems, tasks.task(spec.problems.task)
    generator = np.random.default_rng(spec.seed)
    wanted = {
        "text": problems.num_text,
        "reward": problems.num_reward,
        "policy": problems.num_policy,
        "validation": problems.num_validation,
        "test": problems.num_test,
    }
    drawn = {
        split: splits.draw_split(
            task.draw,
            generator,
            sizes=range(problems.min_size, problems.max_size + 1),
            split=split,
            num_problems=count,
        )
        for split, count in wanted.items()
    }
    text = unlabelled.text(
        drawn.pop("text"), generator, styles=task.styles, shares=_shares(problems)
    )
    _write_lines(directory / "text.jsonl", ({"text": document} for document in text.documents))
    _write_lines(
        directory / "solutions.jsonl",
        (
            {"prompt": problem.prompt, "text": task.styles.worked(problem)}
            for problem in drawn["policy"]
        ),
    )
    for split, listed in drawn.items():
        files.write(directory / f"{split}.jsonl", listed)
    facts = {
        "task": problems.task,
        "num_documents": len(text.documents),
        "right_share": unlabelled.right_share(text),
        "num_problems": {split: len(listed) for split, listed in drawn.items()},
        "sha256": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(directory.glob("*.jsonl"))
        },
    }
    workdir.write_config(directory, spec)
    workdir.write_json(directory / FACTS, facts)
    return facts


def read_facts(directory: str | pathlib.Path) -> dict[str, Any]:
    """What `write` returned.

    Raises:
      FileNotFoundError: the directory holds no finished problems.
    """
    path = pathlib.Path(directory) / FACTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the stage 'problems' writes it last")
    return json.loads(path.read_text(encoding="utf-8"))


def read(directory: str | pathlib.Path, split: str) -> list[Problem]:
    """The problems of a split, unchanged since they were written.

    Raises:
      ValueError: the file is not what was written.
    """
    path = pathlib.Path(directory) / f"{split}.jsonl"
    listed = files.read(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != read_facts(directory)["sha256"][path.name]:
        raise ValueError(f"{path}: sha256 {found} is not that of {FACTS}: the file was changed")
    return listed


def _shares(spec: ProblemsSpec) -> unlabelled.Shares:
    return unlabelled.Shares(
        spec.share_worked, spec.share_careless, spec.share_guess, spec.share_slip
    )


def _write_lines(path: pathlib.Path, records: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="ascii")
