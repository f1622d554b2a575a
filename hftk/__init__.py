"""hftk: fine-tune Hugging Face models on the classic NLP tasks, with numbers that can be trusted.

The names below are what recipes and notebooks use; nothing else is promised. They load when first used, so that
``import hftk`` is quick and changes nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hftk.checks import check
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
    from hftk.evaluation import evaluate, evaluate_baselines
    from hftk.generation import generate
    from hftk.hub import publish, push_checkpoints
    from hftk.launch import run
    from hftk.model import load_model, load_trained
    from hftk.records import load_record, record
    from hftk.reports import write_report
    from hftk.tasks.causal_lm import CausalLM, CausalLMConfig
    from hftk.tasks.classification import Classification, ClassificationConfig
    from hftk.tasks.summarization import Summarization, SummarizationConfig
    from hftk.tasks.translation import Translation, TranslationConfig
    from hftk.trackers import track
    from hftk.training import fit

__version__ = "0.1.0"

_HOMES = {
    "hftk.checks": ("check",),
    "hftk.config": ("AdapterConfig", "DataConfig", "EvalConfig", "GenerationSettings", "InputError", "ModelConfig", "PublishConfig", "QuantizationConfig", "RunConfig", "TrainConfig"),
    "hftk.data.load": ("load_splits",),
    "hftk.evaluation": ("evaluate", "evaluate_baselines"),
    "hftk.generation": ("generate",),
    "hftk.hub": ("publish", "push_checkpoints"),
    "hftk.launch": ("run",),
    "hftk.model": ("load_model", "load_trained"),
    "hftk.records": ("load_record", "record"),
    "hftk.reports": ("write_report",),
    "hftk.tasks.causal_lm": ("CausalLM", "CausalLMConfig"),
    "hftk.tasks.classification": ("Classification", "ClassificationConfig"),
    "hftk.tasks.summarization": ("Summarization", "SummarizationConfig"),
    "hftk.tasks.translation": ("Translation", "TranslationConfig"),
    "hftk.trackers": ("track",),
    "hftk.training": ("fit",),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hftk' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
