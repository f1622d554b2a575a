"""Generation settings that are saved with a model: plain transformers writes with the saved folder what hftk
evaluated."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers import PreTrainedTokenizerBase

from hftk.config import GenerationSettings
from hftk.console import note
from hftk.generation.decoding import make_generation_config

_SAMPLING = ("temperature", "top_k", "top_p")
_NOT_NOTED = frozenset({"max_length", "max_new_tokens", "use_cache", "transformers_version"})
"""Fields of a generation config that need no note: lengths are noted by the task, tokens follow from the
tokenizer."""


def replace_defaults(model: Any, tokenizer: PreTrainedTokenizerBase, settings: GenerationSettings) -> None:
    """Set the model's generation config, in place, to ``settings``, and note which settings of the base model
    that replaces.

    Token ids that an encoder-decoder needs (its start, forced and suppressed tokens) stay as they are.
    """
    own = model.generation_config
    new = make_generation_config(model, tokenizer, settings)
    if settings.do_sample:
        new.do_sample = True
        for name in _SAMPLING:
            setattr(new, name, getattr(settings, name))
    if new.eos_token_id is not None and len(new.eos_token_id) == 1:
        new.eos_token_id = new.eos_token_id[0]
    carried = {
        name: value
        for name, value in own.to_diff_dict().items()
        if not name.startswith(("_", "output_"))
        and not name.endswith(("_token_id", "_tokens", "_ids"))
        and name not in _NOT_NOTED
    }
    replaced = {
        name: value
        for name, value in carried.items()
        if value is not None and getattr(new, name, None) != value
    }
    if replaced:
        said = ", ".join(f"{name} {value}" for name, value in replaced.items())
        known = {field.name for field in fields(GenerationSettings)}
        flags = " ".join(
            f"--generation.{name} {str(value).lower()}" for name, value in replaced.items() if name in known
        )
        hint = f"; to use them: {flags}" if flags else ""
        note(f"generation: the base model's {said} are replaced by the run's --generation settings{hint}")
    kept = {name: value for name, value in vars(own).items() if name.startswith("_")}
    vars(own).clear()  # in place: a PEFT model shares this object with the model that it wraps
    vars(own).update({**vars(new), **kept})
