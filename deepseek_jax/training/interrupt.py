"""SIGTERM and SIGINT as a request to stop after the step. Floor 5."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any

_EXIT_CODES = {signal.SIGTERM: 0, signal.SIGINT: 128 + signal.SIGINT}


class Interrupt:
    """While entered, the first SIGTERM or SIGINT is only remembered; a second one acts as usual.

    Attributes:
      requested: the signal that came, or None.
    """

    def __init__(self) -> None:
        """Nothing has been requested yet."""
        self.requested: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        for number in _EXIT_CODES:
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.requested = signal.Signals(number)
        self._restore()
        # os.write, as print may not be entered again from a signal handler.
        os.write(2, f"{self.requested.name}: finishing the step, then saving\n".encode())

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())


def exit_code(requested: signal.Signals | None) -> int:
    """What a process that saved and stopped returns: 0 after SIGTERM, 130 after SIGINT."""
    return 0 if requested is None else _EXIT_CODES[requested]
