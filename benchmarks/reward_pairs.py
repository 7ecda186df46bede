"""What a reward model sees, against the number of pairs it was trained on, and what holds PPO.

Run: python -m benchmarks.reward_pairs --root=runs/zero/seed_0 --out=runs/reward_pairs \
       --pairs=2000,20000,200000 --steps=200,1000,2000 --batch_size=256

Needs the stages `problems` and `base` of the recipe. Draws problems of its own (the recipe's
2,500 are few), builds pairs of a right with a wrong answer in every style, trains the reward model
on each number of them with Muon, and measures every pairing of styles on problems that no stage
trains on. Then PPO without a KL term, as in the recipe's exhibit, learns from each reward model
alone: where the model is blind, accuracy falls while the reward rises. The baseline, a column of
its own, is the recipe's reward model with the recipe's own exhibit, where they have been trained.
"""

import json
import pathlib
from typing import Any, NamedTuple

import jax
from absl import flags
from ml_collections import config_dict
from rich import console as rich_console
from rich import table as rich_table

from deepseek_jax.evaluation import drawing
from deepseek_jax.evaluation.accuracy import Share
from deepseek_jax.evaluation.recipe_findings import RewardModel
from deepseek_jax.reinforcement import policy_stage, problem_files, reward_stage
from deepseek_jax.training import metrics
from experiments import measure, recipe_report, settings

_NUM_PROBLEMS = 15_000
_CONFIGS = "experiments/configs/zero"
_RECIPE = "recipe"


class Found(NamedTuple):
    """A reward model, and the policy that learned from it alone.

    Attributes:
      num_pairs: that it was trained on.
      model: what it sees.
      accuracy: of the policy, at temperature 1.
      scores: what it gave the policy's answers in the first and in the last iteration.
    """

    num_pairs: int
    model: RewardModel
    accuracy: Share
    scores: tuple[float, float]

    @property
    def lowest(self) -> float:
        """Pair accuracy of the pairing that it tells worst."""
        return min(kind.accuracy.value for kind in self.model.kinds)


def run(
    root: pathlib.Path, out: pathlib.Path, pairs: list[int], steps: list[int], batch_size: int
) -> None:
    """Trains and measures one reward model, and one policy, for each number of pairs."""
    if len(pairs) != len(steps):
        raise ValueError(f"--pairs has {len(pairs)} numbers and --steps {len(steps)}")
    console = rich_console.Console(width=120)
    problems = settings.load_config(f"{_CONFIGS}/problems.py")
    problems.problems.num_reward = _NUM_PROBLEMS
    problem_files.write(settings.freeze(problems), out / "problems")
    found: dict[str, Found] = {}
    if (root / "reward" / "config.json").exists() and (root / "ppo_no_kl" / "config.json").exists():
        found[_RECIPE] = _found(root, root / "reward", root / "ppo_no_kl")
    for num_pairs, num_steps in zip(pairs, steps, strict=True):
        directory = out / f"pairs_{num_pairs}"
        config = _reward_config(root, out, num_pairs, num_steps, batch_size)
        quiet = rich_console.Console(quiet=True)
        reward_stage.train(settings.freeze(config), directory / "reward", console=quiet)
        policy = settings.load_config(f"{_CONFIGS}/ppo.py:no_kl")
        policy.files.update(
            dict(
                problems=str(root / "problems"),
                start_from=str(root / "base"),
                reward_from=str(directory / "reward"),
            )
        )
        policy_stage.train(settings.freeze(policy), directory / "ppo_no_kl", console=quiet)
        name = f"{num_pairs:,} pairs, {num_steps:,} steps"
        found[name] = _found(root, directory / "reward", directory / "ppo_no_kl")
        console.print(
            f"{name}: lowest pairing {found[name].lowest:.1%}, PPO without KL against it "
            f"{found[name].accuracy.value:.1%} right"
        )
    _show(found, console)
    _draw(found, out / "reward_pairs.png")
    content = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "batch_size": batch_size,
        "models": {name: _as_json(one) for name, one in found.items()},
    }
    (out / "reward_pairs.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _reward_config(
    root: pathlib.Path, out: pathlib.Path, num_pairs: int, num_steps: int, batch_size: int
) -> config_dict.ConfigDict:
    """The recipe's reward model on built pairs, with Muon."""
    config = settings.load_config(f"{_CONFIGS}/reward.py")
    config.files.problems = str(out / "problems")
    config.files.start_from = str(root / "base")
    config.pairs.update(
        dict(num_sampled=0, num_built=num_pairs, batch_size=batch_size, heldout_fraction=0.05)
    )
    config.optimizer.update(
        dict(name="muon", learning_rate=1e-3, muon_learning_rate=1e-2, warmup_steps=50)
    )
    config.train.update(dict(num_steps=num_steps, eval_every=num_steps, checkpoint_every=num_steps))
    return config


def _found(root: pathlib.Path, reward: pathlib.Path, policy: pathlib.Path) -> Found:
    listed, rollout = recipe_report.test_problems(root)
    answered = measure.measure(
        measure.open_run(policy, step=None), listed, rollout, temperature=1.0
    )
    lines = metrics.read_lines(policy / "metrics.jsonl")
    scores = [line["learned_score"] for line in lines if "learned_score" in line]
    model = measure.measure_reward_model(reward)
    return Found(model.num_train_pairs, model, answered.accuracy.all, (scores[0], scores[-1]))


def _show(found: dict[str, Found], console: rich_console.Console) -> None:
    """One row for each pairing of styles, a column for each reward model."""
    table = rich_table.Table("right against wrong", *found)
    for rows in zip(*(one.model.kinds for one in found.values()), strict=True):
        table.add_row(rows[0].name, *(f"{kind.accuracy.value:.1%}" for kind in rows))
    ones = found.values()
    table.add_section()
    table.add_row("lowest of all", *(f"{one.lowest:.1%}" for one in ones))
    table.add_row("pairs of its own kind", *(f"{one.model.pairs.value:.1%}" for one in ones))
    table.add_section()
    table.add_row("PPO without KL: right answers", *(f"{one.accuracy.value:.1%}" for one in ones))
    table.add_row(
        "its score, first and last", *("{:.2f}, {:.2f}".format(*one.scores) for one in ones)
    )
    console.print(table)
    device = jax.devices()[0].device_kind
    console.print(f"pair accuracy on problems not trained on; {device}, jax {jax.__version__}")


def _draw(found: dict[str, Found], path: pathlib.Path) -> None:
    """Pair accuracy of every pairing, and what PPO came to, against the number of pairs."""
    built = [one for name, one in found.items() if name != _RECIPE]
    counts = [one.num_pairs for one in built]
    figure, (axes,) = drawing.grid(1, 1, width=8.0, height=4.5)
    for index, kind in enumerate(built[0].model.kinds):
        values = [one.model.kinds[index].accuracy.value for one in built]
        axes.semilogx(counts, values, marker=".", linewidth=1, label=kind.name)
    rights = [one.accuracy.value for one in built]
    axes.semilogx(
        counts, rights, "--", color=drawing.BLACK, marker="o", label="PPO without KL: right answers"
    )
    axes.axhline(0.9, color=drawing.GREY, linewidth=0.8)
    axes.set(xlabel="pairs trained on", ylabel="share", ylim=(0, 1.02))
    axes.legend(fontsize=7)
    drawing.save(figure, path)


def _as_json(one: Found) -> dict[str, Any]:
    return {
        "num_pairs": one.num_pairs,
        "kinds": {kind.name: kind.accuracy._asdict() for kind in one.model.kinds},
        "own_kind": one.model.pairs._asdict(),
        "ppo_no_kl": one.accuracy._asdict(),
        "scores": one.scores,
    }


if __name__ == "__main__":
    _ROOT = flags.DEFINE_string("root", "runs/zero/seed_0", "Directory of a seed of the recipe.")
    _OUT = flags.DEFINE_string("out", "runs/reward_pairs", "Where everything is written.")
    _PAIRS = flags.DEFINE_list("pairs", ["2000", "20000", "200000"], "Numbers of pairs.")
    _STEPS = flags.DEFINE_list("steps", ["200", "1000", "2000"], "Steps for each of them.")
    _BATCH = flags.DEFINE_integer("batch_size", 256, "Pairs of a step.")
    settings.run_app(
        run,
        lambda: pathlib.Path(_ROOT.value).absolute(),
        lambda: pathlib.Path(_OUT.value).absolute(),
        lambda: [int(number) for number in _PAIRS.value],
        lambda: [int(number) for number in _STEPS.value],
        lambda: _BATCH.value,
    )
