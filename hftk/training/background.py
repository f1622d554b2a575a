"""Work in a background thread beside training."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class Sealer:
    """Does one piece of work at a time in a thread; what went wrong in it is raised by the next :meth:`wait`."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether something went wrong that nobody has been told of."""
        return self._error is not None

    def start(self, work: Callable[[], None]) -> None:
        """Begin with ``work``, once the work before is done."""
        self.wait()
        self._thread = threading.Thread(target=self._do, args=(work,), name="checkpoint-sealer")
        self._thread.start()

    def wait(self) -> None:
        """Return when no work is under way; raises what went wrong in it, once."""
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
