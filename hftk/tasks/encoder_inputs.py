"""What tasks on encoders share: texts and pairs of texts as model inputs, what is cut off them, and padded
batches."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hftk.config import InputError, Problem
from hftk.console import note
from hftk.tasks.tokenization import tokenize

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hftk.task import Place, Table

Truncation = Literal["head", "tail", "head+tail", "error"]
SHOWN = 5
"""Rows that are named in an error."""
HEAD_SHARE = 0.25
"""Share of the room that ``head+tail`` gives to the head: 128 of 510 tokens, as in Sun et al. 2019, *How to
Fine-Tune BERT for Text Classification?* (arXiv:1905.05583)."""


@dataclass(frozen=True)
class Template:
    """How a tokenizer frames a text, or a pair of texts, with special tokens."""

    pieces: tuple[tuple[np.ndarray, int] | int, ...]
    """In order: special tokens with their token type, or the number (0, 1) of a text."""
    types: tuple[int, ...]
    """Token type of each text."""
    added: int
    """Number of special tokens."""


def template_of(tokenizer: PreTrainedTokenizerBase, *, pair: bool) -> Template:
    """Read the frame off what the tokenizer does with one-word texts, so that it is right for every model
    type.

    Raises:
        InputError: the tokenizer cannot put two texts into one input.
    """
    words = ["a", "b"] if pair else ["a"]
    own = [tokenize([word], tokenizer)[0].tolist() for word in words]
    made = tokenizer(*words, add_special_tokens=True)
    ids = list(made["input_ids"])
    types = list(made.get("token_type_ids") or [0] * len(ids))
    pieces: list[tuple[np.ndarray, int] | int] = []
    text_types, at = [], 0
    for number, tokens in enumerate(own):
        start = next((i for i in range(at, len(ids)) if ids[i : i + len(tokens)] == tokens), None)
        if start is None or not tokens:
            raise InputError(
                Problem(
                    setting="model.name",
                    message=(
                        f"the tokenizer {type(tokenizer).__name__} does not put"
                        f" {'two texts' if pair else 'a text'} into one input as expected"
                    ),
                    fix="use a tokenizer of a BERT-like model",
                )
            )
        pieces += _special(ids[at:start], types[at:start])
        pieces.append(number)
        text_types.append(types[start])
        at = start + len(tokens)
    pieces += _special(ids[at:], types[at:])
    return Template(tuple(pieces), tuple(text_types), len(ids) - sum(map(len, own)))


def _special(ids: list[int], types: list[int]) -> list[tuple[np.ndarray, int]]:
    """Special tokens, one piece per run of one token type."""
    runs: list[tuple[list[int], int]] = []
    for token, kind in zip(ids, types, strict=True):
        if runs and runs[-1][1] == kind:
            runs[-1][0].append(token)
        else:
            runs.append(([token], kind))
    return [(np.array(tokens, np.int32), kind) for tokens, kind in runs]


def encode_texts(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    truncation: Truncation,
    places: Mapping[tuple[str, str], Place] | None = None,
) -> tuple[dict[str, list[np.ndarray]], dict[str, Any]]:
    """(rows of ``input_ids``, and ``token_type_ids`` where the model takes them; facts) of texts or pairs of
    texts.

    A text, or pair, that is longer than ``max_length`` tokens with its special tokens is cut by
    ``truncation``; of a pair the longer text is cut first, as transformers' ``longest_first``. Facts:
    ``tokens`` (kept, special ones included), ``truncated_rows``, ``tokens_lost``, ``longest`` (tokens of the
    longest row before cutting), ``max_length``. ``places``: the file and row of a text, or pair, for the
    error; without, it counts the given rows from 1 on.

    Raises: InputError: rows are too long and ``truncation`` is ``error``; ``max_length`` holds no token of a
        text.
    """
    frame = template_of(tokenizer, pair=pairs is not None)
    with_types = "token_type_ids" in tokenizer.model_input_names
    encoded = [tokenize(list(texts), tokenizer)]
    if pairs is not None:
        encoded.append(tokenize(list(pairs), tokenizer))
    room = max_length - frame.added
    if room < len(encoded):
        raise InputError(
            Problem(
                setting="train.max_length",
                message=(
                    f"expected at least {frame.added + len(encoded)} tokens, of which {frame.added} are"
                    f" special ones, found {max_length}"
                ),
            )
        )
    inputs: list[np.ndarray] = []
    types: list[np.ndarray] = []
    too_long, lost, longest = [], 0, 0
    for row, parts in enumerate(zip(*encoded, strict=True)):
        whole = sum(map(len, parts))
        longest = max(longest, whole + frame.added)
        if not whole and not frame.added:  # GPT-2 adds no special tokens, and no model reads nothing
            parts = (np.array([tokenizer.eos_token_id or tokenizer.pad_token_id or 0], np.int32), *parts[1:])
        if whole > room:
            too_long.append(row)
            lost += whole - room
            parts = _cut(parts, room, truncation)
        pieces = [parts[piece] if isinstance(piece, int) else piece[0] for piece in frame.pieces]
        inputs.append(np.concatenate(pieces).astype(np.int32))
        if with_types:
            kinds = [frame.types[piece] if isinstance(piece, int) else piece[1] for piece in frame.pieces]
            types.append(np.repeat(np.array(kinds, np.int8), [len(piece) for piece in pieces]))
    if too_long and truncation == "error":
        found = [(texts[row], pairs[row] if pairs is not None else "") for row in too_long[:SHOWN]]
        known = [(places or {}).get(text) for text in found]
        said = [
            f"row {place[1]} of {place[0]}" if place else f"row {row + 1}"
            for place, row in zip(known, too_long, strict=False)
        ]
        raise InputError(_too_long(said, len(too_long), longest, max_length))
    facts = {
        "tokens": int(sum(map(len, inputs))),
        "truncated_rows": len(too_long),
        "tokens_lost": lost,
        "longest": longest,
        "max_length": max_length,
        "truncation": truncation,
    }
    return {"input_ids": inputs} | ({"token_type_ids": types} if with_types else {}), facts


def places_of(
    tables: Mapping[str, Table], places: Mapping[str, Sequence[Place]]
) -> dict[tuple[str, str], Place]:
    """Text and second text ("" where there is none) to the file and row where they stand first, over all
    splits."""
    found: dict[tuple[str, str], Place] = {}
    for split, table in tables.items():
        texts = table["text"]
        for row in zip(texts, table.get("text_pair") or [""] * len(texts), places[split], strict=True):
            found.setdefault(row[:2], row[2])
    return found


def _cut(parts: Sequence[np.ndarray], room: int, truncation: Truncation) -> list[np.ndarray]:
    if len(parts) == 1:
        return [_shorten(parts[0], room, truncation)]
    first, second = len(parts[0]), len(parts[1])
    short = min(first, second)
    # The longer one gives way until both are equal, then both do; an odd token goes to the longer one.
    keep_short = min(short, room // 2)
    keep = (keep_short, room - keep_short) if first <= second else (room - keep_short, keep_short)
    return [_shorten(part, length, truncation) for part, length in zip(parts, keep, strict=True)]


def _shorten(tokens: np.ndarray, length: int, truncation: Truncation) -> np.ndarray:
    if len(tokens) <= length:
        return tokens
    if truncation == "tail":
        return tokens[len(tokens) - length :]
    if truncation == "head+tail":
        head = round(length * HEAD_SHARE)
        return np.concatenate([tokens[:head], tokens[len(tokens) - (length - head) :]])
    return tokens[:length]


def _too_long(said: list[str], count: int, longest: int, max_length: int) -> Problem:
    first = ", ".join(said) + (", ..." if count > len(said) else "")
    return Problem(
        setting="truncation",
        message=(
            f"expected texts of at most {max_length} tokens, found {count:,} longer"
            f" one{'s' if count > 1 else ''} (the longest {longest:,}): {first}"
        ),
        fix=(
            "use --truncation head, tail or head+tail, or a longer --train.max_length where the model"
            " allows it"
        ),
    )


def takes(model: PreTrainedModel, name: str) -> bool:
    """Whether the forward pass (that of the model below an adapter) names this input, or names none and so
    takes any."""
    wrapped = getattr(model, "get_base_model", None)
    named = inspect.signature((wrapped() if wrapped else model).forward).parameters
    return name in named or "input_ids" not in named


def fixed_width(model: PreTrainedModel, asked: int | None) -> int:
    """Tokens that every row is padded to for a model that takes no mask: ``asked`` (``train.max_length``), at
    most its context.

    Raises:
        InputError: neither is known.
    """
    lengths = [length for length in (asked, getattr(model.config, "max_position_embeddings", None)) if length]
    name = type(model).__name__
    if not lengths:
        message = (
            f"{name} takes no attention mask, so every row is padded to one length, and its config names none"
        )
        raise InputError(
            Problem(setting="train.max_length", message=message, fix="set it: --train.max_length 128")
        )
    note(
        f"{name} takes no attention mask: every row is padded to {min(lengths)} tokens (--train.max_length),"
        " so that padding is the same for all"
    )
    return int(min(lengths))


def pad(
    features: list[dict[str, Any]], pad_id: int, *, left: bool = False, width: int | None = None
) -> dict[str, torch.Tensor]:
    """``input_ids``, ``attention_mask`` and ``token_type_ids`` (where there are some) of one batch, padded on
    the right (or the left) to its longest row, or to ``width`` where a row is not longer: (batch, tokens)
    int64 each."""
    import torch

    width = max(width or 0, *(len(feature["input_ids"]) for feature in features))
    input_ids = np.full((len(features), width), pad_id, np.int64)
    mask = np.zeros((len(features), width), np.int64)
    types = np.zeros((len(features), width), np.int64) if "token_type_ids" in features[0] else None
    for i, feature in enumerate(features):
        n = len(feature["input_ids"])
        place = slice(width - n, width) if left else slice(0, n)
        input_ids[i, place], mask[i, place] = feature["input_ids"], 1
        if types is not None:
            types[i, place] = feature["token_type_ids"]
    batch = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask)}
    return batch | ({"token_type_ids": torch.from_numpy(types)} if types is not None else {})
