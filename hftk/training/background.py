"""Work in a background thread beside training."""

from __future__ import annotations

import threading
from collections.abc import Callable

from hftk.launch.exits import CHECKPOINT_THREAD


class BackgroundTask:
    """One task at a time in a thread; its error is raised by the next :meth:`wait`."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether a task ended with an error that was not raised yet."""
        return self._error is not None

    def start(self, work: Callable[[], None]) -> None:
        """Start ``work``, once the task before is done."""
        self.wait()
        self._thread = threading.Thread(target=self._do, args=(work,), name=CHECKPOINT_THREAD)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the task under way; raises its error, once."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
