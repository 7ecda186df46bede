"""The first thing a newcomer runs: R1 on real text, then the R1-Zero recipe, a report of each.

Run: make demo

Goes on where it was interrupted; a finished demo is measured again, not trained again.
"""

import pathlib
import sys
import time

from rich import console as rich_console
from rich import markdown as rich_markdown

from experiments import evaluate, main, recipe, settings, trained

CONFIG = "experiments/configs/laptop.py"


RECIPE = pathlib.Path("runs/zero")


def demo(workdir: pathlib.Path) -> None:
    """Trains, evaluates and samples in `workdir`; then the recipe, with seed 0."""
    started = time.perf_counter()
    recipe.keep_programs(RECIPE.absolute())
    console = rich_console.Console()
    console.rule(f"training {CONFIG} in {workdir.relative_to(pathlib.Path.cwd())}")
    main.main(settings.freeze(settings.load_config(CONFIG)), workdir)
    console.rule("measuring on held-out text")
    evaluate.main(workdir, trained.open_run(workdir))
    console.rule("R1-Zero: problems, base, reward model, PPO")
    recipe.recipe(RECIPE.absolute(), (0,), recipe.ARMS["demo"])
    page = RECIPE / "seed_0" / "report.md"
    console.print(rich_markdown.Markdown(page.read_text(encoding="utf-8")))
    console.print(f"{time.perf_counter() - started:.0f} s in all. Next:")
    python = pathlib.Path(sys.executable)
    console.print(
        f"  {python} -m experiments.generate --workdir={workdir} --prompt='def '", soft_wrap=True
    )
    console.print("  make recipe  # three seeds, every arm")
    console.print(f"  to start over: rm -r {workdir} {RECIPE.absolute()}", soft_wrap=True)


if __name__ == "__main__":
    settings.run_app(demo, lambda: pathlib.Path("runs/demo").absolute())
