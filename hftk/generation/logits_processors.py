"""What a text to be generated must and must not contain, and drawing its tokens at random.

A constraint is called as transformers' ``LogitsProcessor`` is: with the tokens so far, (rows, tokens), and
the scores of the next one, (rows, vocabulary), of which it returns what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from transformers import (
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hftk.config import GenerationSettings

FIELDS = (
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
"""Fields of a ``GenerationConfig`` that :func:`constraints` knows."""

Constraint = Callable[..., torch.Tensor]


class RowSampling(LogitsProcessor):
    """Sampling that gives a row the same tokens in any batch: Gumbel-max with random numbers of the row's
    own.

    The likeliest token after adding independent Gumbel noise to the log-probabilities is a sample from them
    (Gumbel 1954; Maddison et al. 2014, *A\\* Sampling*). So with this processor greedy decoding samples:
    temperature, top-k and top-p first, as ``generate`` does, then noise from a generator seeded by ``(seed,
    row)``. A row draws one number per vocabulary entry and step, whatever is filtered out; rounding in the
    logits matters only where two perturbed ones are tied.
    """

    def __init__(self, settings: GenerationSettings, rows: Iterable[int]) -> None:
        seed = settings.seed % 2**64  # SeedSequence takes no negative numbers
        self._generators = [np.random.default_rng([seed, row]) for row in rows]
        self._warpers = LogitsProcessorList()
        if settings.temperature != 1.0:
            self._warpers.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_k:
            self._warpers.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1.0:
            self._warpers.append(TopPLogitsWarper(settings.top_p))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``scores`` is (rows, vocabulary) logits; returns them filtered, scaled and perturbed."""
        ids: Any = input_ids  # transformers wants a LongTensor for its type, which no tensor is
        scores = self._warpers(ids, scores)
        # In float64: the winner among a large vocabulary has an exponential number near 0, where float32 is
        # coarse.
        waits = np.stack([generator.standard_exponential(scores.shape[-1]) for generator in self._generators])
        gumbel = -np.log(np.maximum(waits, np.finfo(np.float64).tiny))
        return scores + torch.from_numpy(gumbel).to(dtype=scores.dtype).to(scores.device)

    def keep(self, rows: list[int]) -> None:
        """Go on with these of the present rows alone."""
        self._generators = [self._generators[row] for row in rows]


class Constraints:
    """The constraints of a ``GenerationConfig`` in the order in which ``generate`` applies them; false where
    there are none.

    ``starts`` is (rows,): how many padding tokens stand before each row's text. They are no part of it (to
    ``generate`` they are: there a row's n-grams depend on how far its neighbours made it be padded).
    """

    def __init__(self, config: GenerationConfig, prompt_length: int, starts: torch.Tensor) -> None:
        self._starts, self._penalty, self._ngram = (
            starts,
            config.repetition_penalty,
            config.no_repeat_ngram_size,
        )
        self._others = _others(config, prompt_length, starts.device)

    def __bool__(self) -> bool:
        return bool(self._others or self._ngram or self._penalty not in (None, 1.0))

    def __call__(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``tokens`` is (rows, tokens so far) with the prompt, ``scores`` (rows, vocabulary)."""
        if self._penalty not in (None, 1.0):
            scores = _penalized(tokens, scores, self._starts, self._penalty)
        if self._ngram:
            scores = _without_repeats(tokens, scores, self._starts, self._ngram)
        for constraint in self._others:
            scores = constraint(tokens, scores)
        return scores

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these of the present rows alone."""
        self._starts = self._starts[rows]


def _penalized(
    tokens: torch.Tensor, scores: torch.Tensor, starts: torch.Tensor, penalty: float
) -> torch.Tensor:
    """Scores of the row's tokens made smaller: divided by ``penalty`` where positive, else multiplied (Keskar
    et al. 2019)."""
    columns, vocabulary = torch.arange(tokens.shape[1], device=tokens.device), scores.shape[1]
    own = (columns >= starts[:, None]) & (tokens < vocabulary)  # a model may read tokens that it cannot write
    places = torch.where(own, tokens, vocabulary)
    scores = torch.nn.functional.pad(scores, (0, 1))
    found = scores.gather(1, places)
    return scores.scatter(1, places, torch.where(found < 0, found * penalty, found / penalty))[:, :-1]


def _without_repeats(
    tokens: torch.Tensor, scores: torch.Tensor, starts: torch.Tensor, size: int
) -> torch.Tensor:
    """``-inf`` for each token that would end an n-gram of ``size`` tokens which the row already has (Paulus
    et al. 2017)."""
    if tokens.shape[1] < size:
        return scores
    ngrams = tokens.unfold(1, size, 1)  # (rows, n-grams, size)
    places = torch.arange(ngrams.shape[1], device=tokens.device) >= starts[:, None]
    last = tokens[:, tokens.shape[1] - size + 1 :]
    again = (ngrams[:, :, :-1] == last[:, None]).all(-1) & places  # (rows, n-grams)
    row, ngram = again.nonzero(as_tuple=True)
    scores = scores.clone()
    scores[row, ngrams[row, ngram, -1]] = -torch.inf
    return scores


def _others(config: GenerationConfig, prompt_length: int, device: torch.device) -> list[Constraint]:
    """The constraints that look at no more than a row's length and last tokens, by transformers."""
    ends: Any = config.eos_token_id
    found: list[Any] = []
    if config.bad_words_ids is not None:
        found.append(NoBadWordsLogitsProcessor(config.bad_words_ids, ends))
    if config.forced_bos_token_id is not None:
        found.append(ForcedBOSTokenLogitsProcessor(config.forced_bos_token_id))
    if config.forced_eos_token_id is not None:
        most = prompt_length + config.max_new_tokens
        found.append(ForcedEOSTokenLogitsProcessor(most, config.forced_eos_token_id, device=str(device)))
    return found
