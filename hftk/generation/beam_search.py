"""Beam search, by the rules of transformers' ``generate``, one row independent of the others.

A row has ``beams`` texts to go on with and up to ``beams`` finished ones. At each step its likeliest
candidates (texts with one more token) are found; of the best ``beams`` of them those that end here are
finished, with their log-probability divided by ``tokens ** length_penalty`` as their score; the best that do
not end are gone on with. When a row is over is decided by ``early_stopping`` (False, True or "never"), as in
``generate`` 5.23: there a row that is over stays in the batch and changes no more; here it leaves.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from transformers import GenerationConfig

from hftk.generation.logits_processors import Constraints

NEVER = -1.0e9
"""Score of what cannot be chosen. It is added, as in ``generate``, so that the order among such candidates is
the same."""

CHUNK = 32
"""Numbers of the vocabulary whose maximum is looked at before they are (:func:`best`)."""


class Steps(Protocol):
    """What beam search wants of a model (:class:`hftk.generation.decoding.Steps`)."""

    def first(self) -> torch.Tensor: ...

    def next(self, tokens: torch.Tensor) -> torch.Tensor: ...

    def repeat(self, beams: int) -> None: ...

    def keep(self, rows: torch.Tensor, parents: torch.Tensor | None = None) -> None: ...

    def turn(self, parents: torch.Tensor) -> None: ...


@dataclass
class _Beams:
    """The rows present; each tensor has them as its first axis."""

    texts: torch.Tensor
    """(rows, beams, prompt and new tokens): the texts to go on with."""
    sums: torch.Tensor
    """(rows, beams): log-probability of each."""
    finished: torch.Tensor
    """(rows, beams, prompt and new tokens): the finished texts, best first."""
    scores: torch.Tensor
    """(rows, beams): the score of each; ``NEVER`` where there is none."""
    lengths: torch.Tensor
    """(rows, beams): tokens of each, with the prompt's."""
    full: torch.Tensor
    """(rows, beams): whether there is a finished text in this place."""
    numbers: torch.Tensor
    """(rows,): each row's number among all."""

    def select(self, rows: torch.Tensor) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[rows])


def search(
    steps: Steps, prompt: torch.Tensor, constrain: Constraints, config: GenerationConfig
) -> list[list[int]]:
    """The best text of each row: its new tokens, the end-of-text token included where there is one.

    ``prompt`` is (rows, tokens), with which every text starts.
    """
    beams, begin, most = config.num_beams, prompt.shape[1], prompt.shape[1] + config.max_new_tokens
    ends: Any = torch.tensor(config.eos_token_id or [], device=prompt.device)
    state = _begin(prompt, beams, most)
    results: list[list[int]] = [[] for _ in prompt]
    logits = steps.first().repeat_interleave(beams, 0)
    steps.repeat(beams)
    constrain.keep(torch.arange(len(prompt), device=prompt.device).repeat_interleave(beams))
    for length in range(begin + 1, most + 1):  # of the texts after this step
        chances = torch.log_softmax(logits, -1)  # (rows x beams, vocabulary)
        if constrain:
            chances = constrain(state.texts[..., : length - 1].flatten(0, 1), chances)
        parents = _step(state, chances, ends, length, begin, most, config)
        over = _over(state, length - begin, most - begin, config)
        last = bool(over.all()) or length == most
        if not last and not over.any():
            steps.turn(parents.flatten())
        else:
            for place in range(len(over)) if last else over.nonzero()[:, 0].tolist():
                number, end = int(state.numbers[place]), int(state.lengths[place, 0])
                results[number] = state.finished[place, 0, begin:end].tolist()
            if last:
                break
            rows = (~over).nonzero()[:, 0]
            places = (rows[:, None] * beams + torch.arange(beams, device=rows.device)).flatten()
            steps.keep(places, parents[rows].flatten())
            constrain.keep(places)
            state.select(rows)
        logits = steps.next(state.texts[:, :, length - 1].flatten())
    return results


def _begin(prompt: torch.Tensor, beams: int, most: int) -> _Beams:
    rows = len(prompt)
    texts = prompt.new_zeros(rows, beams, most)
    texts[:, :, : prompt.shape[1]] = prompt[:, None]
    sums = torch.full((rows, beams), NEVER, device=prompt.device)
    sums[:, 0] = 0.0  # at first all beams are the same text: one of them counts
    return _Beams(
        texts=texts,
        sums=sums,
        finished=texts.clone(),
        scores=torch.full_like(sums, NEVER),
        lengths=torch.full((rows, beams), prompt.shape[1], device=prompt.device),
        full=torch.zeros_like(sums, dtype=torch.bool),
        numbers=torch.arange(rows, device=prompt.device),
    )


def _step(
    state: _Beams,
    chances: torch.Tensor,
    ends: torch.Tensor,
    length: int,
    begin: int,
    most: int,
    config: GenerationConfig,
) -> torch.Tensor:
    """One more token for every text. Returns which text, (rows, beams) counted over all, each one is a
    continuation of."""
    rows, beams = state.sums.shape
    # Enough candidates that `beams` of them go on, even if each end-of-text token follows every text.
    candidates = max(2, 1 + len(ends)) * beams
    values, words = best(
        chances, min(candidates, chances.shape[1])
    )  # (rows x beams, candidates of each text)
    each = values.shape[1]
    sums = (values.view(rows, beams, each) + state.sums[:, :, None]).view(rows, -1)
    sums, found = sums.topk(candidates)  # (rows, candidates), best first
    parents, tokens = found // each, words.view(rows, -1).gather(1, found)
    texts = state.texts.gather(1, parents[:, :, None].expand(-1, -1, most))
    texts[:, :, length - 1] = tokens
    ending = torch.isin(tokens, ends) if length < most else torch.ones_like(tokens, dtype=torch.bool)

    going = sums + ending.to(sums.dtype) * NEVER
    ahead = going.topk(beams)[1]
    state.texts = texts.gather(1, ahead[:, :, None].expand(-1, -1, most))
    state.sums = going.gather(1, ahead)

    counts = ending.clone()
    counts[:, beams:] = False
    scores = sums / ((length - begin) ** config.length_penalty)
    if config.early_stopping is True:
        scores += state.full.all(1, keepdim=True).to(sums.dtype) * NEVER
    scores += (~counts) * NEVER
    state.scores, best_ever = torch.cat((state.scores, scores), 1).topk(beams)
    texts = torch.cat((state.finished, texts), 1)
    state.finished = texts.gather(1, best_ever[:, :, None].expand(-1, -1, most))
    lengths = torch.cat((state.lengths, torch.full_like(tokens, length)), 1)
    state.lengths = lengths.gather(1, best_ever)
    state.full = torch.cat((state.full, counts), 1).gather(1, best_ever)
    offsets = torch.arange(rows, device=sums.device)[:, None] * beams
    return parents.gather(1, ahead) + offsets


def best(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``count`` highest of each row of ``scores``, (rows, vocabulary), best first, and their places:
    ``topk``.

    ``topk`` sorts at some 5 ns a number on a CPU, and a maximum costs a tenth: so only the ``CHUNK`` numbers
    around the highest maxima are sorted. Which of two equal numbers comes first is left open, as it is by
    ``topk``.
    """
    rows, vocabulary = scores.shape
    chunks = vocabulary // CHUNK
    if chunks < 4 * count:
        values, places = scores.topk(count)
        return values, places
    whole = scores[:, : chunks * CHUNK].unflatten(1, (chunks, CHUNK))
    top = whole.amax(2).topk(count)[1]  # (rows, chunks): no number outside of these can be among the highest
    places = (top[:, :, None] * CHUNK + torch.arange(CHUNK, device=scores.device)).flatten(1)
    rest = torch.arange(chunks * CHUNK, vocabulary, device=scores.device).expand(rows, -1)
    places = torch.cat((places, rest), 1)
    values, found = scores.gather(1, places).topk(count)
    return values, places.gather(1, found)


def _over(state: _Beams, new: int, most: int, config: GenerationConfig) -> torch.Tensor:
    """(rows,): whether no text of the row can still become its best one, by the rule that ``early_stopping``
    names."""
    full = state.full.all(1)
    if config.early_stopping is True:
        return full | ~_promising(state, new, config)
    return ~_promising(
        state, most if config.early_stopping == "never" and config.length_penalty > 0 else new, config
    )


def _promising(state: _Beams, tokens: int, config: GenerationConfig) -> torch.Tensor:
    """(rows,): whether the likeliest text that goes on, ended at ``tokens`` new ones, would beat the worst
    finished one."""
    possible = state.sums[:, 0] / tokens**config.length_penalty
    worst = torch.where(state.full, state.scores.min(1, keepdim=True)[0], NEVER).amin(1)
    return possible > worst
