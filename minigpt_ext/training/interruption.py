"""Ctrl-C and SIGTERM, heard when it suits."""

from __future__ import annotations

import signal
import threading
from types import TracebackType


class StopSignals:
    """While open, the first SIGINT or SIGTERM is noted in `received` instead of ending the process.

    A second one acts as it would have without us. Outside the main thread, where Python allows no handlers, nothing is
    ever received.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _note(self, number: int, frame: object) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
