"""Facts about generated texts: length, empty and repetitive outputs, and how much is copied from the source.

They are no scores: none says which way is better. A model that generates nothing, repeats itself or copies
its source shows here first.

Sources: See et al., Get to the point (ACL 2017), for novel n-grams; Grusky et al., Newsroom (NAACL 2018),
section 4, for extractive fragments, coverage and density.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import regex

from hftk.metrics.rouge import TOKEN
from hftk.metrics.translation import check_texts, split_tokens

Tokens = Sequence[str]

REPEATED = 4
"""Tokens of an n-gram that counts as repeated."""
OFTEN = 3
"""Times that it has to occur in one output."""
NOVEL = (1, 2, 3, 4)
"""Orders of the n-grams that are looked for in the source."""

_TOKEN = regex.compile(rf"{TOKEN}|\S")


def output_facts(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    sources: Sequence[str] | None,
    language: str | None,
) -> dict[str, Any]:
    """What a person wants to know about outputs before looking at scores; shares are from 0 to 1.

    ``rows``; ``empty``: share of outputs of white space alone; ``mean_tokens``, ``mean_reference_tokens`` (of
    the reference that is closest in length, the shorter of two, as in BLEU) and ``length_ratio``, the first
    divided by the second; ``repetitive``: share of outputs in which some 4-gram occurs at least three times,
    overlaps included.

    Given sources: ``novel_1grams`` to ``novel_4grams``, the share of all n-grams of the outputs, counted as
    often as they occur, that their own source does not have (See et al. 2017). And of Grusky et al. 2018,
    whose fragments are the longest spans that an output shares with its source, taken greedily from its
    start: ``copied_coverage``, the share of an output's tokens in fragments; ``copied_density``, the sum of
    their squared lengths divided by the output's tokens, both as means over rows with output; and
    ``copied_span``, the mean length of a fragment, in tokens.

    None where it is undefined (no n-gram, no fragment, references without tokens). predictions: (n,);
    references: (n,) lists of one text or more; sources: (n,), or None where copying has no meaning. language:
    tokens as BLEU counts them there (:func:`hftk.metrics.translation.translation_scores`); None: by script,
    words of spaced ones, characters of others, signs of punctuation. Case is not seen. Raises InputError as
    translation_scores does, ValueError where the number of sources differs.
    """
    check_texts(predictions, references)
    if sources is not None and len(sources) != len(predictions):
        raise ValueError(
            f"expected one source per row, found {len(sources)} and {len(predictions)} predictions"
        )
    outputs = _tokens(predictions, language)
    closest = [
        min(
            (len(tokens) for tokens in _tokens(row, language)),
            key=lambda length: (abs(length - len(output)), length),
        )
        for row, output in zip(references, outputs, strict=True)
    ]
    n, written, wanted = len(outputs), sum(map(len, outputs)), sum(closest)
    facts: dict[str, Any] = {
        "rows": n,
        "empty": sum(not text.strip() for text in predictions) / n,
        "mean_tokens": written / n,
        "mean_reference_tokens": wanted / n,
        "length_ratio": _ratio(written, wanted),
        "repetitive": sum(map(repeats, outputs)) / n,
    }
    if sources is None:
        return facts
    originals = _tokens(sources, language)
    for order in NOVEL:
        facts[f"novel_{order}grams"] = _novel_share(outputs, originals, order)
    return facts | _copied(outputs, originals)


def repeats(tokens: Tokens) -> bool:
    """Whether some 4-gram occurs at least three times."""
    counts = Counter(_ngrams(tokens, REPEATED))
    return bool(counts) and max(counts.values()) >= OFTEN


def copied_spans(output: Tokens, source: Tokens) -> list[int]:
    """Lengths of the extractive fragments (Grusky et al. 2018, figure 3): from the start of the output on,
    the longest span that begins there and stands in the source, then on behind it; a token that the source
    lacks is skipped."""
    places: dict[str, list[int]] = {}
    for place, token in enumerate(source):
        places.setdefault(token, []).append(place)
    spans = []
    start = 0
    while start < len(output):
        longest = 0
        for place in places.get(output[start], ()):
            length = 1
            while (
                start + length < len(output)
                and place + length < len(source)
                and output[start + length] == source[place + length]
            ):
                length += 1
            longest = max(longest, length)
        if longest:
            spans.append(longest)
        start += max(longest, 1)
    return spans


def _copied(outputs: Sequence[Tokens], sources: Sequence[Tokens]) -> dict[str, float | None]:
    spans = [copied_spans(output, source) for output, source in zip(outputs, sources, strict=True)]
    written = [(found, len(output)) for found, output in zip(spans, outputs, strict=True) if output]
    return {
        "copied_coverage": _ratio(sum(sum(found) / length for found, length in written), len(written)),
        "copied_density": _ratio(
            sum(sum(span * span for span in found) / length for found, length in written), len(written)
        ),
        "copied_span": _ratio(sum(map(sum, spans)), sum(map(len, spans))),
    }


def _novel_share(outputs: Sequence[Tokens], sources: Sequence[Tokens], order: int) -> float | None:
    novel = total = 0
    for output, source in zip(outputs, sources, strict=True):
        known = set(_ngrams(source, order))
        found = _ngrams(output, order)
        novel += sum(ngram not in known for ngram in found)
        total += len(found)
    return _ratio(novel, total)


def _ngrams(tokens: Tokens, order: int) -> list[tuple[str, ...]]:
    return list(zip(*(tokens[place:] for place in range(order)), strict=False))


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None


def _tokens(texts: Sequence[str], language: str | None) -> list[list[str]]:
    lowered = [text.lower() for text in texts]
    return [_TOKEN.findall(text) for text in lowered] if language is None else split_tokens(lowered, language)
