"""The first thing a newcomer runs: train the laptop preset, measure it, write its report.

Run: make demo

Goes on where it was interrupted; a finished demo is measured again, not trained again.
"""

import pathlib
import sys
import time

from rich import console as rich_console

from experiments import evaluate, main, settings, trained

CONFIG = "experiments/configs/laptop.py"


def demo(workdir: pathlib.Path) -> None:
    """Trains, evaluates and samples in `workdir`."""
    started = time.perf_counter()
    console = rich_console.Console()
    console.rule(f"training {CONFIG} in {workdir.relative_to(pathlib.Path.cwd())}")
    main.main(settings.freeze(settings.load_config(CONFIG)), workdir)
    console.rule("measuring on held-out text")
    evaluate.main(workdir, trained.open_run(workdir))
    console.print(f"{time.perf_counter() - started:.0f} s in all. Next:")
    python = pathlib.Path(sys.executable)
    console.print(
        f"  {python} -m experiments.generate --workdir={workdir} --prompt='def '", soft_wrap=True
    )
    console.print(f"  to start over: rm -r {workdir}", soft_wrap=True)


if __name__ == "__main__":
    settings.run_app(demo, lambda: pathlib.Path("runs/demo").absolute())
