"""hftk: fine-tune Hugging Face models on the classic NLP tasks, with numbers that can be trusted.

The names below are what recipes and notebooks use; nothing else is promised. They load when first used, so
that ``import hftk`` is quick and changes nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hftk.tasks.table import TASKS
from hftk.version import __version__ as __version__

if TYPE_CHECKING:
    from hftk.config import (
        AdapterConfig,
        DataConfig,
        EvalConfig,
        GenerationSettings,
        InputError,
        ModelConfig,
        PublishConfig,
        QuantizationConfig,
        RunConfig,
        TrainConfig,
    )
    from hftk.data.load import load_splits
    from hftk.evaluation.evaluate import evaluate, evaluate_baselines
    from hftk.generation.generate import generate
    from hftk.hub import publish, push_checkpoints
    from hftk.launch import run
    from hftk.models.load import load_model, load_trained
    from hftk.reports import write_report
    from hftk.reports.record import load_record, record
    from hftk.tasks.causal_lm import CausalLM, CausalLMConfig
    from hftk.tasks.classification import Classification, ClassificationConfig
    from hftk.tasks.summarization import Summarization, SummarizationConfig
    from hftk.tasks.translation import Translation, TranslationConfig
    from hftk.training.checks import check
    from hftk.training.fit import fit
    from hftk.training.trackers import track


_HOMES = {
    "hftk.training.checks": ("check",),
    "hftk.config": (
        "AdapterConfig",
        "DataConfig",
        "EvalConfig",
        "GenerationSettings",
        "InputError",
        "ModelConfig",
        "PublishConfig",
        "QuantizationConfig",
        "RunConfig",
        "TrainConfig",
    ),
    "hftk.data.load": ("load_splits",),
    "hftk.evaluation.evaluate": ("evaluate", "evaluate_baselines"),
    "hftk.generation.generate": ("generate",),
    "hftk.hub": ("publish", "push_checkpoints"),
    "hftk.launch": ("run",),
    "hftk.models.load": ("load_model", "load_trained"),
    "hftk.reports.record": ("load_record", "record"),
    "hftk.reports": ("write_report",),
    "hftk.training.trackers": ("track",),
    "hftk.training.fit": ("fit",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
_HOME |= {name: module for module, *names in TASKS.values() for name in names}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hftk' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
