"""Baselines for language models: unigram and interpolated Kneser-Ney bigram over token ids.

Both predict the tokens that the model predicts: every token of every document, the first one in the context
of a start symbol, for which the end-of-text token stands. The end-of-text token after each document is
trained on (so that it takes its share of the probability, as it does in the model) but never judged. Empty
documents are skipped in training.

Axes: documents; tokens (all documents end to end); V (vocabulary); pairs (distinct pairs of neighbours seen
in training). There is no V x V matrix: pairs are sorted int64 keys, so that memory goes with the training
tokens (about 25 bytes each while fitting).

Sources: Kneser & Ney, Improved backing-off for m-gram language modeling (ICASSP 1995); Chen & Goodman, An
empirical study of smoothing techniques for language modeling (Computer Speech and Language 13, 1999),
sections 2.5 to 2.7, for the interpolated form and the discount.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.integer[Any]]

FALLBACK_DISCOUNT = 0.5
"""Used where nothing was seen exactly once, so that the estimate is 0 and would leave unseen tokens no
probability; KenLM's ``--discount_fallback`` starts from the same."""
CHUNK = 2**20
"""Tokens looked up at a time, to bound the memory of judging."""


class Packed(NamedTuple):
    """Documents end to end, for sets that are too large for a list of arrays."""

    tokens: Ids
    """(tokens,) ids of all documents."""
    offsets: npt.NDArray[np.int64]
    """(documents + 1,) ascending: document i is ``tokens[offsets[i]:offsets[i + 1]]``."""


Documents = Sequence[npt.ArrayLike] | Packed
"""One integer array per document, without the end-of-text token that is added to it; or :class:`Packed`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Unigram:
    """P(w) by absolute discounting, interpolated with 1/V; made by :func:`fit_unigram`."""

    probabilities: Floats
    """(V,), all above 0, summing to 1."""

    @property
    def details(self) -> str:
        """What a score's signature has to say about the model."""
        return "model:unigram,absolute discounting"

    def token_nats(self, documents: Documents) -> Floats:
        """Negative log-likelihood of every token, in nats: (tokens,). ValueError for an id outside the
        vocabulary."""
        packed = pack(documents, len(self.probabilities))
        return -np.log(self.probabilities)[packed.tokens]

    def nats(self, documents: Documents) -> Floats:
        """Sum of the negative log-likelihoods of each document's tokens, in nats: (documents,); lower is
        better."""
        packed = pack(documents, len(self.probabilities))
        return sum_spans(self.token_nats(packed), packed.offsets)


@dataclass(frozen=True, kw_only=True, eq=False)
class Bigram:
    """Interpolated Kneser-Ney P(w | c); made by :func:`fit_bigram`."""

    keys: npt.NDArray[np.int64]
    """(pairs,) c * V + w of every pair seen in training, ascending."""
    direct: Floats
    """(pairs,) (N(c, w) - D) / N(c), the discounted share of the pair itself."""
    backoff: Floats
    """(V,) weight of ``continuation`` after context c; 1 for a context that was never seen."""
    continuation: Floats
    """(V,) probability of w by the number of contexts it was seen in; all above 0, summing to 1."""
    discount: float
    """D, in (0, 1]."""
    end_token: int
    """Id of the end-of-text token, which is also the context of a document's first token."""

    @property
    def details(self) -> str:
        """What a score's signature has to say about the model."""
        return f"model:bigram,interpolated Kneser-Ney,D={self.discount:.3f}"

    def token_nats(self, documents: Documents) -> Floats:
        """Negative log-likelihood of every token, in nats: (tokens,). ValueError for an id outside the
        vocabulary."""
        vocab_size = len(self.continuation)
        packed = pack(documents, vocab_size)
        contexts = np.roll(packed.tokens, 1)
        lengths = np.diff(packed.offsets)
        contexts[packed.offsets[:-1][lengths > 0]] = self.end_token
        nats = np.empty(len(packed.tokens))
        for start in range(0, len(nats), CHUNK):
            part = slice(start, start + CHUNK)
            nats[part] = -np.log(self._probabilities(contexts[part], packed.tokens[part]))
        return nats

    def nats(self, documents: Documents) -> Floats:
        """Sum of the negative log-likelihoods of each document's tokens, in nats: (documents,); lower is
        better."""
        packed = pack(documents, len(self.continuation))
        return sum_spans(self.token_nats(packed), packed.offsets)

    def _probabilities(self, contexts: Ids, tokens: Ids) -> Floats:
        probabilities = self.backoff[contexts] * self.continuation[tokens]
        if len(self.keys):
            wanted = contexts.astype(np.int64) * len(self.continuation) + tokens
            places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
            probabilities += np.where(self.keys[places] == wanted, self.direct[places], 0.0)
        return probabilities


def fit_unigram(documents: Documents, *, vocab_size: int, end_token: int) -> Unigram:
    """Count the tokens of the documents and one end-of-text token for each; with counts N(w), N in all:

    P(w) = max(N(w) - D, 0) / N  +  D * (number of w seen) / N * 1/V,  D = n1 / (n1 + 2 n2),

    n1, n2: how many w were seen exactly once and twice. Uniform where there is no text at all.
    Raises ValueError for an id outside 0 .. vocab_size - 1.
    """
    stream = _stream(pack(documents, vocab_size), vocab_size, end_token)
    return Unigram(probabilities=_discounted(np.bincount(stream[1:], minlength=vocab_size)))


def fit_bigram(documents: Documents, *, vocab_size: int, end_token: int) -> Bigram:
    """Count the pairs (c, w) of neighbours, from (start, first token) to (last token, end-of-text) of each
    document:

    P(w | c) = max(N(c, w) - D, 0) / N(c)  +  D * (number of w seen after c) / N(c) * Q(w),  D = n1 / (n1 + 2
    n2),

    n1, n2: how many pairs were seen exactly once and twice. Q is P of :func:`fit_unigram` with N(w) replaced
    by the number of different contexts before w, and with a discount estimated from those numbers. Q(w) alone
    after a context never seen. Raises ValueError for an id outside 0 .. vocab_size - 1.
    """
    stream = _stream(pack(documents, vocab_size), vocab_size, end_token)
    all_keys = stream[:-1].astype(np.int64)
    all_keys *= vocab_size
    all_keys += stream[1:]
    del stream
    keys, counts = np.unique(all_keys, return_counts=True)
    del all_keys
    contexts, tokens = np.divmod(keys, vocab_size)
    followers = np.bincount(contexts, minlength=vocab_size)
    totals = np.bincount(contexts, weights=counts, minlength=vocab_size)
    discount = _discount(counts)
    backoff = np.ones(vocab_size)
    np.divide(discount * followers, totals, out=backoff, where=totals > 0)
    return Bigram(
        keys=keys,
        direct=(counts - discount) / totals[contexts],
        backoff=backoff,
        continuation=_discounted(np.bincount(tokens, minlength=vocab_size)),
        discount=discount,
        end_token=end_token,
    )


def pack(documents: Documents, vocab_size: int) -> Packed:
    """Documents end to end. ValueError for an id outside 0 .. vocab_size - 1, or offsets that do not fit the
    tokens."""
    if isinstance(documents, Packed):
        packed = documents
        ends = (packed.offsets[0], packed.offsets[-1]) if len(packed.offsets) else ()
        if ends != (0, len(packed.tokens)) or (np.diff(packed.offsets) < 0).any():
            raise ValueError(
                f"expected offsets that ascend from 0 to the {len(packed.tokens)} tokens, found {ends}"
            )
    else:
        arrays = [np.asarray(document, dtype=np.int64) for document in documents]
        offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
        np.cumsum([len(array) for array in arrays], out=offsets[1:])
        packed = Packed(np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64), offsets)
    if len(packed.tokens):
        low, high = packed.tokens.min(), packed.tokens.max()
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"expected token ids from 0 to {vocab_size - 1}, found {low if low < 0 else high}"
            )
    return packed


def _stream(packed: Packed, vocab_size: int, end_token: int) -> Ids:
    """All documents that are not empty, with the end token before the first and after each: neighbours are
    the pairs."""
    if not 0 <= end_token < vocab_size:
        raise ValueError(f"expected an end token from 0 to {vocab_size - 1}, found {end_token}")
    ends = packed.offsets[1:][np.diff(packed.offsets) > 0]
    return np.insert(packed.tokens, np.concatenate([[0], ends]), end_token)


def _discounted(counts: npt.NDArray[np.int64]) -> Floats:
    """(V,) counts to (V,) probabilities: absolute discounting, the mass set free spread evenly over the
    vocabulary."""
    total = int(counts.sum())
    if not total:
        return np.full(len(counts), 1 / len(counts))
    discount = _discount(counts)
    freed = discount * np.count_nonzero(counts) / total
    probabilities: Floats = np.maximum(counts - discount, 0) / total + freed / len(counts)
    return probabilities


def _discount(counts: npt.NDArray[np.int64]) -> float:
    """D = n1 / (n1 + 2 n2), in (0, 1], from how many counts are 1 and 2 (Ney, Essen & Kneser 1994)."""
    once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    return float(once / (once + 2 * twice)) if once else FALLBACK_DISCOUNT


def sum_spans(values: Floats, offsets: npt.NDArray[np.int64]) -> Floats:
    """(tokens,) values to (spans,) sums, span i being offsets[i] .. offsets[i + 1] - 1; 0 for an empty span.

    The spans are documents, or blocks where documents are too few to be resampled.
    """
    sums = np.zeros(len(offsets) - 1)
    filled = np.diff(offsets) > 0
    if filled.any():
        # reduceat gives an empty span its neighbour's value: sum the filled ones only
        sums[filled] = np.add.reduceat(values, offsets[:-1][filled])
    return sums
