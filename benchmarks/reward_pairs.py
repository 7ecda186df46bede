"""What a reward model sees, against the number of pairs it was trained on.

Run: python -m benchmarks.reward_pairs --root=runs/zero/seed_0 --out=runs/reward_pairs \
       --pairs=2000,16000,128000 --steps=200,1000,3000 --batch_size=256

Needs the stage `base` of the recipe. Draws problems of its own (the recipe's 2,500 are few), builds
pairs of a right with a wrong answer in every style, trains the reward model on each number of
them, and measures every pairing of styles on problems that no stage trains on. The baseline, a row
of its own, is the recipe's reward model, where it has been trained.
"""

import json
import pathlib

import jax
from absl import flags
from rich import console as rich_console
from rich import table as rich_table

from deepseek_jax.evaluation.recipe_findings import RewardModel
from deepseek_jax.reinforcement import problem_files, reward_stage
from experiments import measure, settings

_NUM_PROBLEMS = 15_000
_PROBLEMS = "experiments/configs/zero/problems.py"
_REWARD = "experiments/configs/zero/reward.py"


def run(
    root: pathlib.Path, out: pathlib.Path, pairs: list[int], steps: list[int], batch_size: int
) -> None:
    """Trains and measures one reward model for each number of pairs."""
    if len(pairs) != len(steps):
        raise ValueError(f"--pairs has {len(pairs)} numbers and --steps {len(steps)}")
    console = rich_console.Console()
    problems = settings.load_config(_PROBLEMS)
    problems.problems.num_reward = _NUM_PROBLEMS
    problem_files.write(settings.freeze(problems), out / "problems")
    found: dict[str, RewardModel] = {}
    if (root / "reward" / "config.json").exists():
        found["recipe"] = measure.measure_reward_model(root / "reward")
    for num_pairs, num_steps in zip(pairs, steps, strict=True):
        config = settings.load_config(_REWARD)
        config.files.problems = str(out / "problems")
        config.files.start_from = str(root / "base")
        config.pairs.update(dict(num_sampled=0, num_built=num_pairs, batch_size=batch_size))
        config.pairs.heldout_fraction = 0.05
        config.train.update(
            dict(num_steps=num_steps, eval_every=num_steps, checkpoint_every=num_steps)
        )
        directory = out / f"pairs_{num_pairs}"
        quiet = rich_console.Console(quiet=True)
        reward_stage.train(settings.freeze(config), directory, console=quiet)
        found[f"{num_pairs:,} pairs, {num_steps:,} steps"] = measure.measure_reward_model(directory)
        console.print(
            f"{num_pairs:,} pairs: {found[list(found)[-1]].pairs.value:.1%} of its own kind"
        )
    _show(found, console)
    content = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "models": {
            name: {kind.name: kind.accuracy._asdict() for kind in model.kinds}
            for name, model in found.items()
        },
    }
    (out / "reward_pairs.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _show(found: dict[str, RewardModel], console: rich_console.Console) -> None:
    """One row for each pairing of styles, a column for each model: pair accuracy."""
    table = rich_table.Table("right against wrong", *found)
    for rows in zip(*(model.kinds for model in found.values()), strict=True):
        table.add_row(rows[0].name, *(f"{kind.accuracy.value:.1%}" for kind in rows))
    table.add_row(
        "lowest of all", *(f"{min(k.accuracy.value for k in m.kinds):.1%}" for m in found.values())
    )
    console.print(table)
    device = jax.devices()[0].device_kind
    console.print(f"pair accuracy; {device}, jax {jax.__version__}", markup=False)


if __name__ == "__main__":
    _ROOT = flags.DEFINE_string("root", "runs/zero/seed_0", "Directory of a seed of the recipe.")
    _OUT = flags.DEFINE_string("out", "runs/reward_pairs", "Where everything is written.")
    _PAIRS = flags.DEFINE_list("pairs", ["2000", "16000", "128000"], "Numbers of pairs.")
    _STEPS = flags.DEFINE_list("steps", ["200", "1000", "3000"], "Steps for each of them.")
    _BATCH = flags.DEFINE_integer("batch_size", 256, "Pairs of a step.")
    settings.run_app(
        run,
        lambda: pathlib.Path(_ROOT.value).absolute(),
        lambda: pathlib.Path(_OUT.value).absolute(),
        lambda: [int(number) for number in _PAIRS.value],
        lambda: [int(number) for number in _STEPS.value],
        lambda: _BATCH.value,
    )
