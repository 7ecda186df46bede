"""What a person sees while a run trains: a bar in a terminal, else a line per log. Floor 5."""

import time
from types import TracebackType
from typing import Any

from rich import console as rich_console
from rich import progress as rich_progress

# Peak of dense bf16 matmuls in FLOP/s, by the start of JAX's `device_kind`; vendors' data sheets.
_PEAKS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


def peak_flops(device_kind: str) -> float | None:
    """The device's peak in bf16 FLOP/s; None where it isn't known."""
    names = [name for name in _PEAKS if device_kind.startswith(name)]
    return _PEAKS[max(names, key=len)] if names else None


class Throughput:
    """Tokens a second since the last line, and the seconds of the whole run.

    The first step of a process compiles, so it counts as seconds but not as throughput;
    neither do pauses (evaluation).
    """

    def __init__(self, *, seconds: float) -> None:
        """Goes on from the `seconds` that earlier processes spent on the run."""
        self._began = time.perf_counter() - seconds
        self._since: float | None = None
        self._tokens = 0

    def count(self, tokens: int) -> None:
        """Counts a step that has ended; the first one only starts the clock."""
        if self._since is None:
            self._since = time.perf_counter()
        else:
            self._tokens += tokens

    def seconds(self) -> float:
        """Seconds since the run began, over all its processes."""
        return time.perf_counter() - self._began

    def rate(self) -> float | None:
        """Tokens a second since the last call of `restart`; None when nothing was counted."""
        if self._since is None or self._tokens == 0:
            return None
        return self._tokens / (time.perf_counter() - self._since)

    def restart(self) -> None:
        """Begins a new interval."""
        self._tokens = 0
        if self._since is not None:
            self._since = time.perf_counter()


class Progress:
    """The display of one run."""

    def __init__(self, *, first_step: int, num_steps: int, console: rich_console.Console) -> None:
        """Shows steps from `first_step` to `num_steps` on `console`."""
        self._console = console
        self._num_steps = num_steps
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("step {task.completed}/{task.total}"),
            rich_progress.BarColumn(),
            rich_progress.TextColumn("{task.fields[summary]}"),
            rich_progress.TextColumn("left"),
            rich_progress.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            "train", total=num_steps, completed=first_step, summary="compiling"
        )

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def step(self, step: int) -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=step)

    def log(self, line: dict[str, Any]) -> None:
        """Shows a line of metrics: beside the bar, or as text where there is none."""
        summary = "  ".join(_shown(name, line[name]) for name in _SHOWN if name in line)
        if self._console.is_terminal:
            self._bar.update(self._task, summary=summary)
        else:
            self.say(f"step {line['step']}/{self._num_steps}  {summary}")

    def say(self, message: str) -> None:
        """Prints a message above the bar."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)


_SHOWN = (
    "loss",
    "tokens_per_second",
    "share_of_peak",
    "load_max_over_mean",
    "unused_experts",
    "heldout_loss",
    "heldout_bits_per_byte",
    "reward",
    "accuracy",
    "kl",
    "length",
    "pair_accuracy",
    "heldout_accuracy",
    "heldout_pair_accuracy",
    "contrastive_loss",
    "heldout_recall_at_1",
)


def _shown(name: str, value: float | None) -> str:
    match name, value:
        case "loss", _:
            return f"loss {value:.4f}"
        case "tokens_per_second", None:
            return "tokens/s unknown yet"
        case "tokens_per_second", _:
            return f"{value:,.0f} tokens/s"
        case "share_of_peak", None:
            return "share of peak unknown"
        case "share_of_peak", _:
            return f"{value:.1%} of peak"
        case "load_max_over_mean", _:
            return f"load max/mean {value:.2f}"
        case "unused_experts", _:
            return f"unused experts {value}"
        case _:
            return f"{name.replace('_', ' ')} {value:.4f}"
