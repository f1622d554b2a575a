"""Loss, perplexity and bits per byte of a language model on a split, with intervals."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hftk.metrics.bootstrap import percentile_interval, resample_sums
from hftk.task import Score

FEWEST_DOCUMENTS = 20
"""Below this many documents the interval comes from resampling blocks, where blocks are given."""


class Counts(NamedTuple):
    """What is summed, one entry per document or per block; three arrays of one shape (n,)."""

    nats: npt.ArrayLike
    """Sum of the negative log-likelihoods (natural logarithm) of the predicted tokens."""
    tokens: npt.ArrayLike
    """Number of predicted tokens."""
    bytes: npt.ArrayLike
    """UTF-8 bytes of the text that those tokens stand for."""


def perplexity_scores(
    nats: npt.ArrayLike,
    tokens: npt.ArrayLike,
    bytes: npt.ArrayLike,
    blocks: Counts | None = None,
    *,
    context: int,
    stride: int,
    tokenizer_name: str,
    resamples: int,
    seed: int,
    details: str = "",
) -> list[Score]:
    """Three scores of one split; lower is better in all of them.

    ``perplexity``: exp(loss), a pure number (Jelinek et al. 1977); inf where that overflows. ``loss``: nats
    per token, the sum over all predicted tokens of the split divided by their number, never a mean of batch
    or document means. ``bits_per_byte``: total nats / (ln 2 x total UTF-8 bytes), which unlike the other two
    can be compared across tokenizers (Gao et al. 2020, The Pile, section 3.1).

    Counted: every token of the text, the first of a document in the context of a start symbol. Not counted:
    the end-of-text token that is added after a document, padding, and tokens that only serve as context when
    the stride is below the context.

    nats, tokens, bytes: (documents,) sums and counts per document. blocks: the same numbers cut finer, per
    block (window), to be resampled where fewer than 20 documents have any text: such an interval tells how
    far these documents vary, not how other documents would do, and it is too narrow as neighbouring blocks
    are alike. What was resampled stands in the signature, and its number in ``n``. Intervals: 95 %,
    percentile bootstrap; None below two things to resample. context: most tokens that the model sees at once;
    stride: tokens by which the window moves on, equal to ``context`` where windows do not overlap; 2 and 1
    for a bigram, 1 and 1 for a unigram model. details: anything else that a second person needs, for the
    signature, such as :attr:`hftk.metrics.ngrams.Bigram.details`.

    Raises ValueError where shapes differ, a count is negative, no token is predicted, the text has no bytes,
    or the blocks do not add up to the documents.
    """
    documents = _matrix(Counts(nats, tokens, bytes), "document")
    total_nats, total_tokens, total_bytes = (float(total) for total in documents.sum(axis=0))
    if not total_tokens:
        raise ValueError(
            f"expected at least one token to predict, found none in {len(documents)} documents: perplexity is"
            " undefined"
        )
    if not total_bytes:
        raise ValueError(
            f"expected the UTF-8 bytes of {total_tokens:.0f} tokens, found 0: bits per byte is undefined"
        )

    # empty documents say nothing about how documents vary
    resampled, unit = documents[documents[:, 1:].any(axis=1)], "documents"
    if blocks is not None:
        cut = _matrix(blocks, "block")
        if not np.allclose(cut.sum(axis=0), documents.sum(axis=0), rtol=1e-6, atol=0, equal_nan=True):
            raise ValueError(
                "expected blocks that add up to the documents in (nats, tokens, bytes), "
                f"found {_numbers(cut.sum(axis=0))} and {_numbers(documents.sum(axis=0))}"
            )
        cut = cut[cut[:, 1:].any(axis=1)]
        if len(resampled) < min(FEWEST_DOCUMENTS, len(cut)):
            resampled, unit = cut, "blocks"

    sums = resample_sums(resampled, resamples=resamples, seed=seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        loss_interval = percentile_interval(sums[:, 0] / sums[:, 1])
        bits_interval = percentile_interval(sums[:, 0] / (sums[:, 2] * math.log(2)))
    loss = total_nats / total_tokens

    fields = [f"tokens:{tokenizer_name}", f"context:{context}", f"stride:{stride}"]
    fields += [
        f"bootstrap:{unit}[{resamples}]" if loss_interval else "bootstrap:none",
        "end_of_text:not counted",
    ]
    signature = "|".join([*fields, *([details] if details else []), "hftk"])

    def score(name: str, value: float, unit: str, interval: tuple[float, float] | None) -> Score:
        return Score(
            name=name,
            value=value,
            unit=unit,
            higher_is_better=False,
            n=len(resampled),
            interval=interval,
            signature=signature,
        )

    # exp rises, so the ends of the loss' percentile interval give those of the perplexity's
    perplexity_interval = (_exp(loss_interval[0]), _exp(loss_interval[1])) if loss_interval else None
    return [
        score("perplexity", _exp(loss), "", perplexity_interval),
        score("loss", loss, "nats/token", loss_interval),
        score("bits_per_byte", total_nats / (math.log(2) * total_bytes), "bits/byte", bits_interval),
    ]


def _matrix(counts: Counts, thing: str) -> npt.NDArray[np.float64]:
    """(n, 3): nats, tokens and bytes; ValueError for shapes that differ and for negative counts."""
    columns = [np.asarray(column, dtype=np.float64) for column in counts]
    shapes = [column.shape for column in columns]
    if len(shapes[0]) != 1 or len(set(shapes)) != 1:
        raise ValueError(f"expected nats, tokens and bytes of one shape ({thing}s,), found {shapes}")
    matrix = np.stack(columns, axis=1)
    if (matrix[:, 1:] < 0).any():
        raise ValueError(
            f"expected counts of tokens and bytes of at least 0 in every {thing}, found a negative one"
        )
    return matrix


def _exp(loss: float) -> float:
    """exp, and inf where math.exp raises OverflowError (above about 709 nats per token)."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _numbers(sums: npt.NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{value:.10g}" for value in sums) + ")"
