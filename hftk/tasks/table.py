"""The tasks of hftk by name: the one list of them. Modules are imported when a task is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hftk.task import Task

TASKS = {
    "causal_lm": ("hftk.tasks.causal_lm", "CausalLM", "CausalLMConfig"),
    "classification": ("hftk.tasks.classification", "Classification", "ClassificationConfig"),
    "summarization": ("hftk.tasks.summarization", "Summarization", "SummarizationConfig"),
    "translation": ("hftk.tasks.translation", "Translation", "TranslationConfig"),
}
"""Name of a task, as in ``record.json``, to its module, class and config."""
TRANSLATORS = ("marian", "m2m_100", "nllb-moe", "mbart", "fsmt")
"""Model types of encoder-decoders that were made for translation."""
_registered: dict[str, tuple[type[Task], type[Any]]] = {}


def register(task: type[Task], config: type[Any]) -> None:
    """Add a task of your own, so that the command ``hftk`` knows its runs."""
    _registered[task.name] = (task, config)


def load_task(name: str) -> tuple[type[Task], type[Any]]:
    """The class of a task and that of its config.

    Raises:
        InputError: there is no task of this name.
    """
    if name in _registered:
        return _registered[name]
    if name not in TASKS:
        from hftk.config import InputError, Problem  # here, so that `import hftk` stays quick

        message = f"expected a run of {' or '.join([*TASKS, *_registered])}, found one of {name}"
        raise InputError(Problem(setting="", message=message, fix="use a newer hftk"))
    module, task, config = TASKS[name]
    found = import_module(module)
    return getattr(found, task), getattr(found, config)


def task_of_model(config: Mapping[str, Any]) -> str:
    """Name of the task of a model that no run of hftk made, by its config: by its head."""
    if any("ForSequenceClassification" in name for name in config.get("architectures") or ()):
        return "classification"
    if config.get("is_encoder_decoder"):
        return "translation" if config.get("model_type") in TRANSLATORS else "summarization"
    return "causal_lm"
