"""Judging and generating: ``eval.*`` and ``generation.*``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hftk.config.problems import Problem

MOST_RESAMPLES = 1_000_000
"""More change no digit of an interval that is shown."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How a split is judged."""

    batch_size: int = 32
    """Rows per device in one forward pass; it does not change any score."""
    max_rows: int | None = None
    """Judge at most this many rows of the split (the first ones). Default: all."""
    generate_rows: int = 100
    """Summarization, translation: rows of the validation split (the first ones) for which text is generated
    at each evaluation during training, greedily, so that train.metric_for_best_model can be bleu or rougeL.
    0: none."""
    stride: int | None = None
    """Language models: tokens between the starts of overlapping windows over documents longer than the
    context. Default: the context's length, windows do not overlap."""
    resamples: int = 1000
    """Bootstrap resamples behind every 95 % interval; 0: no intervals."""
    seed: int = 0
    """Seed of the bootstrap."""

    def problems(self) -> Iterator[Problem]:
        for name in ("batch_size", "max_rows", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield Problem(setting=f"eval.{name}", message=f"expected at least 1, found {value}")
        if self.resamples > MOST_RESAMPLES:
            message = f"expected at most {MOST_RESAMPLES:,}, found {self.resamples:,}"
            yield Problem(setting="eval.resamples", message=message, fix="use --eval.resamples 10000")
        for name in ("resamples", "generate_rows"):
            if getattr(self, name) < 0:
                yield Problem(
                    setting=f"eval.{name}", message=f"expected 0 or more, found {getattr(self, name)}"
                )


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How text is generated; the names are those of transformers' ``GenerationConfig``."""

    max_new_tokens: int = 64
    """Most tokens to generate. 0: as many as the training targets need, with a margin (summarization,
    translation)."""
    do_sample: bool = False
    """Draw tokens at random instead of taking the most likely one."""
    temperature: float = 1.0
    """Divides the logits before sampling: below 1 safer, above 1 wilder."""
    top_k: int = 0
    """Sample among the k most likely tokens; 0: all."""
    top_p: float = 1.0
    """Sample among the most likely tokens that together have this probability."""
    num_beams: int = 1
    """Beams of beam search; 1: none."""
    length_penalty: float = 1.0
    """Beam search scores a text by its log-probability divided by its tokens to this power: above 1 longer
    texts, below 1 shorter ones."""
    early_stopping: bool | Literal["never"] = False
    """When beam search is over. true: as soon as there are num_beams finished texts; false: when no better
    one is likely; never: when no better one is possible."""
    no_repeat_ngram_size: int = 0
    """No sequence of this many tokens occurs twice in a text (in a language model's, prompt included); 0: any
    may."""
    repetition_penalty: float = 1.0
    """Divides the logit of a token that the text (in a language model's, prompt included) already has: above
    1 fewer repetitions."""
    seed: int = 0
    """Seed of sampling."""

    def problems(self) -> Iterator[Problem]:
        for name, least in (("max_new_tokens", 0), ("num_beams", 1)):
            if getattr(self, name) < least:
                yield Problem(
                    setting=f"generation.{name}",
                    message=f"expected at least {least}, found {getattr(self, name)}",
                )
        if not self.temperature > 0:
            yield Problem(
                setting="generation.temperature",
                message=f"expected more than 0, found {self.temperature}",
                fix="for the most likely token use --generation.do_sample false",
            )
        if not 0 < self.top_p <= 1:
            yield Problem(setting="generation.top_p", message=f"expected 0 < top_p <= 1, found {self.top_p}")
        if self.top_k < 0:
            yield Problem(setting="generation.top_k", message=f"expected 0 or more, found {self.top_k}")
        if not self.do_sample and (self.temperature != 1.0 or self.top_k or self.top_p != 1.0):
            yield Problem(
                setting="generation.do_sample",
                message="temperature, top_k and top_p act only when sampling",
                fix="add --generation.do_sample true",
            )
        if self.no_repeat_ngram_size < 0:
            yield Problem(
                setting="generation.no_repeat_ngram_size",
                message=f"expected 0 or more, found {self.no_repeat_ngram_size}",
            )
        if not self.repetition_penalty > 0:
            yield Problem(
                setting="generation.repetition_penalty",
                message=f"expected more than 0, found {self.repetition_penalty}",
                fix="for no penalty use 1.0",
            )
        if self.num_beams == 1 and (self.length_penalty != 1.0 or self.early_stopping is not False):
            yield Problem(
                setting="generation.num_beams",
                message="length_penalty and early_stopping act only in beam search, found num_beams 1",
                fix="add --generation.num_beams 4",
            )
        if self.do_sample and self.num_beams > 1:
            yield Problem(
                setting="generation.num_beams",
                message=(
                    f"expected 1 with do_sample (beams look for the likeliest text), found {self.num_beams}"
                ),
                fix="leave out one of --generation.num_beams and --generation.do_sample",
            )
