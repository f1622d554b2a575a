"""Find mistakes that need no data and no weights, all at once, before anything slow."""

from __future__ import annotations

from hftk.config import InputError, RunConfig
from hftk.model import check_model, default_length
from hftk.task import Task


def check(config: RunConfig, task: Task) -> int:
    """Hold the settings against the model's own config; return the context in which rows are judged, in tokens.

    Raises:
        InputError: every problem found: contradictory settings, no such model, a block longer than the model's context.
    """
    problems, made = list(config.problems()), None
    try:
        made = check_model(config.model, task, config.train.max_length)
    except InputError as error:
        problems += [p for p in error.problems if p not in problems]
    if problems or made is None:
        raise InputError(*problems)
    return default_length(made)
