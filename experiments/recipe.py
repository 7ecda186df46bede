"""The R1-Zero recipe: problems, base, reward model, policies, one report a seed.

Run: python -m experiments.recipe --root=runs/zero --seeds=0,1,2 --arms=all
     python -m experiments.recipe --root=runs/zero --seeds=0 --arms=demo   (what `make demo` runs)

Every stage is a run of its own, started by `experiments.main`'s code from a file in
experiments/configs/zero; the recipe chains them and goes on wherever it was killed, also within
a stage. `table.md` and `table.json` in the root hold the accuracies of all seeds.
"""

import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from absl import flags
from ml_collections import config_dict
from rich import console as rich_console

from deepseek_jax.evaluation import recipe_findings as findings_lib
from deepseek_jax.training import checkpoint
from experiments import main as main_lib
from experiments import measure, recipe_report, settings
from experiments.configs.zero import shared

CONFIGS = "experiments/configs/zero"


class Stage(NamedTuple):
    """A stage of the recipe.

    Attributes:
      name: of its directory.
      config: its file, with a variant.
      arm: key of `recipe_findings.ARMS` if it is measured on problems.
    """

    name: str
    config: str
    arm: str | None


STAGES = (
    Stage("problems", "problems.py", None),
    Stage("base", "base.py", findings_lib.BASE),
    Stage("reward", "reward.py", None),
    Stage("ppo", "ppo.py", findings_lib.PPO_LEARNED),
    Stage("supervised", "supervised.py", findings_lib.SUPERVISED),
    Stage("ppo_rule", "ppo.py:rule", findings_lib.PPO_RULE),
    Stage("grpo", "grpo.py", findings_lib.GRPO),
    Stage("ppo_no_kl", "ppo.py:no_kl", findings_lib.PPO_NO_KL),
    Stage("dense", "base.py:dense_total", None),
)
ARMS = {
    "demo": ("problems", "base", "reward", "ppo"),
    "all": tuple(stage.name for stage in STAGES),
}


def main(root: pathlib.Path, seeds: tuple[int, ...], names: tuple[str, ...]) -> None:
    """`recipe` as a program of its own, which keeps what it compiles."""
    keep_programs(root)
    recipe(root, seeds, names)


def keep_programs(root: pathlib.Path) -> None:
    """Keeps compiled programs in `root`/compiled, for stages and seeds that run the same ones.

    A cache that the user has set for JAX stays the only one.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))


def recipe(root: pathlib.Path, seeds: tuple[int, ...], names: tuple[str, ...]) -> None:
    """Runs the named stages of every seed, measures them, and writes the reports."""
    console = rich_console.Console()
    for seed in seeds:
        directory = root / f"seed_{seed}"
        for stage in STAGES:
            # One dense twin tells enough of a latency.
            if stage.name in names and (stage.name != "dense" or seed == seeds[0]):
                console.rule(f"seed {seed}: {stage.name} ({CONFIGS}/{stage.config})")
                _timed(directory, stage.name, functools.partial(_run, stage, directory, seed))
        report = recipe_report.write(directory, names)
        console.print(f"report: {report}", soft_wrap=True)
    console.print(recipe_report.write_table(root, seeds), markup=False)


def stage_settings(stage: Stage, directory: pathlib.Path, seed: int) -> settings.StageSpec:
    """The settings of a stage of a seed, whose files lie below `directory`."""
    config = settings.load_config(f"{CONFIGS}/{stage.config}")
    config.seed = seed
    return settings.freeze(_moved(config, str(directory)))


def _moved(config: config_dict.ConfigDict, directory: str) -> dict[str, Any]:
    """The settings with every path below the presets' root put below `directory`."""

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: moved(item) for name, item in value.items()}
        if isinstance(value, str) and value.startswith(f"{shared.ROOT}/"):
            return directory + value.removeprefix(shared.ROOT)
        return value

    return moved(config.to_dict())


def _run(stage: Stage, directory: pathlib.Path, seed: int) -> None:
    """Finishes a stage and measures it; does nothing that is done."""
    spec = stage_settings(stage, directory, seed)
    workdir = directory / stage.name
    if stage.name == "problems" or not _is_finished(workdir, spec):
        main_lib.main(spec, workdir)
    if stage.arm is not None and not (workdir / recipe_report.MEASURED).exists():
        model = measure.open_run(workdir, step=None)
        listed, rollout = recipe_report.test_problems(directory)
        measure.save(
            workdir / recipe_report.MEASURED,
            measure.measure(model, listed, rollout, temperature=1.0),
            measure.measure(model, listed, rollout, temperature=0.0),
        )


def _is_finished(workdir: pathlib.Path, spec: Any) -> bool:
    """Whether its last step is saved; then it need not be built again to find out."""
    return spec.train.num_steps in checkpoint.finished_steps(workdir / "checkpoints")


def _timed(directory: pathlib.Path, name: str, work: Callable[[], None]) -> None:
    """Adds the seconds of a stage to `seconds.json`; a kill loses those of its process."""
    path = directory / recipe_report.SECONDS
    start = time.perf_counter()
    work()
    directory.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    spent = time.perf_counter() - start
    total = spent + (before[name] if name in before else 0.0)
    path.write_text(json.dumps({**before, name: total}) + "\n", encoding="utf-8")


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--seeds={text}: must be whole numbers, as in 0,1,2") from error


if __name__ == "__main__":
    _ROOT = flags.DEFINE_string("root", "runs/zero", "Directory of all seeds.")
    _SEEDS = flags.DEFINE_string("seeds", "0,1,2", "Seeds, each with every stage of its own.")
    _ARMS = flags.DEFINE_enum("arms", "all", list(ARMS), "Which stages.")
    settings.run_app(
        main,
        lambda: pathlib.Path(_ROOT.value).absolute(),
        lambda: _seeds(_SEEDS.value),
        lambda: ARMS[_ARMS.value],
    )
    sys.exit(0)
