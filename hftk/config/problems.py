"""What is wrong with the input: where, what was found, what was expected, and what to type next."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One mistake in the input: where it is, what was found, what was expected and what to type next."""

    setting: str
    """Dotted name of the setting as it is typed on the command line, such as ``train.learning_rate``; ""
    where none applies."""
    message: str
    """What was expected and what was found, in one sentence."""
    fix: str = ""
    """What to type next."""

    def __str__(self) -> str:
        where = f"--{self.setting}: " if self.setting else ""
        return f"{where}{self.message}" + (f"\n    {self.fix}" if self.fix else "")


class Told(Exception):
    """An error whose message is all that its reader needs."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class InputError(Told):
    """Wrong input by the user. :func:`hftk.launch.run` prints it without a traceback and exits with code 2.

    Built from one message or from several :class:`Problem`, which are shown together.
    """

    def __init__(self, *problems: Problem | str) -> None:
        self.problems = tuple(
            p if isinstance(p, Problem) else Problem(setting="", message=p) for p in problems
        )
        super().__init__("\n".join(str(p) for p in self.problems))


class PlainError(Told):
    """What ended the run is no defect of the program and no wrong input.

    The message says what happened, what is kept and what to type next; it is shown without a traceback, and
    the exit code is 1.
    """


class ServiceError(PlainError):
    """A server or the network failed; nothing is wrong with the input and nothing is lost."""


class DiskError(PlainError):
    """A disk is full or cannot be written; what was whole before is still there."""


class OutOfMemory(PlainError):
    """A run that needs more memory than there is; the message says how much, and which settings need less."""


_WORDS = (
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "bad_alloc",
    "failed to allocate",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, or one of torch's, on any device."""
    if isinstance(error, MemoryError | OutOfMemory) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)
