from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from hftk.metrics import ngrams
from hftk.metrics.ngrams import Packed, fit_bigram, fit_unigram, sum_spans

END = 0


def absolute_discounting(counts, vocab_size):
    """P(w) over counts {w: N}, with the formulas spelled out."""
    total = sum(counts.values())
    if total == 0:
        return lambda w: 1 / vocab_size
    once = sum(1 for count in counts.values() if count == 1)
    twice = sum(1 for count in counts.values() if count == 2)
    discount = once / (once + 2 * twice) if once else 0.5
    weight = discount * len(counts) / total
    return lambda w: max(counts.get(w, 0) - discount, 0) / total + weight / vocab_size


def reference_unigram(documents, vocab_size, end=END):
    counts = Counter()
    for document in documents:
        if len(document):
            counts.update([*document, end])
    return absolute_discounting(counts, vocab_size)


def reference_bigram(documents, vocab_size, end=END):
    pairs, followers, before = Counter(), defaultdict(Counter), defaultdict(set)
    for document in documents:
        if len(document):
            words = [end, *document, end]
            for c, w in itertools.pairwise(words):
                pairs[c, w] += 1
                followers[c][w] += 1
                before[w].add(c)
    once = sum(1 for count in pairs.values() if count == 1)
    twice = sum(1 for count in pairs.values() if count == 2)
    discount = once / (once + 2 * twice) if once else 0.5
    continuation = absolute_discounting({w: len(contexts) for w, contexts in before.items()}, vocab_size)

    def probability(c, w):
        total = sum(followers[c].values())
        if total == 0:
            return continuation(w)
        own = max(followers[c][w] - discount, 0) / total
        return own + discount * len(followers[c]) / total * continuation(w)

    return probability


def conditional(model, c, w):
    """P(w | c) through the public interface; c None: at the start of a document."""
    if c is None:
        return math.exp(-model.nats([[w]])[0])
    return math.exp(model.nats([[c]])[0] - model.nats([[c, w]])[0])


TRAINING_SETS = {
    "a few documents": ([[1, 2, 1, 2, 3], [1, 2], [3, 3, 3, 1]], 6),
    "empty documents among them": ([[], [1, 2, 1], [], [2, 2], []], 4),
    "nothing at all": ([], 3),
    "empty documents only": ([[], []], 3),
    "all pairs seen once": ([[1, 2, 3, 4]], 7),
    "no pair seen twice": ([[1, 1, 1, 1, 2]], 4),
    "no pair seen once": ([[1, 2]] * 3, 5),
    "all pairs seen twice": ([[1, 2]] * 2, 5),
    "a vocabulary of one token": ([[0, 0, 0]], 1),
    "the end token inside a document": ([[1, 0, 2], [0]], 3),
}


@pytest.mark.parametrize(("documents", "vocab_size"), TRAINING_SETS.values(), ids=TRAINING_SETS)
class TestOnToys:
    def test_the_unigram_equals_the_formulas(self, documents, vocab_size):
        model = fit_unigram(documents, vocab_size=vocab_size, end_token=END)
        expected = reference_unigram(documents, vocab_size)
        assert model.probabilities == pytest.approx([expected(w) for w in range(vocab_size)], rel=1e-12)

    def test_the_bigram_equals_the_formulas_in_every_context(self, documents, vocab_size):
        model = fit_bigram(documents, vocab_size=vocab_size, end_token=END)
        expected = reference_bigram(documents, vocab_size)
        for w in range(vocab_size):
            assert conditional(model, None, w) == pytest.approx(expected(END, w), rel=1e-9)
            for c in range(vocab_size):
                assert conditional(model, c, w) == pytest.approx(expected(c, w), rel=1e-9)

    def test_probabilities_are_above_zero_and_sum_to_one(self, documents, vocab_size):
        unigram = fit_unigram(documents, vocab_size=vocab_size, end_token=END)
        bigram = fit_bigram(documents, vocab_size=vocab_size, end_token=END)
        words = range(vocab_size)
        assert unigram.probabilities.min() > 0
        assert unigram.probabilities.sum() == pytest.approx(1)
        for c in (None, *words):
            assert sum(conditional(bigram, c, w) for w in words) == pytest.approx(1)
        judged = bigram.nats([[c, w] for c in words for w in words])
        assert np.isfinite(judged).all()


def test_numbers_worked_out_by_hand():
    # stream 0 1 2 1 0: pairs 01 12 21 10, each once, so D = 1 and only the continuation speaks
    singletons = fit_bigram([[1, 2, 1]], vocab_size=3, end_token=0)
    # contexts before 0: {1}, before 1: {0, 2}, before 2: {1}; once 2, twice 1: D' = 2/4; freed 0.5*3/4 = 3/8,
    # a third of it each: Q(0) = Q(2) = 0.5/4 + 1/8 = 0.25, Q(1) = 1.5/4 + 1/8 = 0.5
    assert singletons.discount == 1
    assert singletons.nats([[1], [2], [1, 2]]) == pytest.approx(
        [math.log(2), math.log(4), math.log(2) + math.log(4)]
    )

    # 0 1 0 1 2 0: pairs 01 twice, 10 once, 12 once, 20 once: D = 3/(3 + 2*1) = 0.6
    bigram = fit_bigram([[1], [1, 2]], vocab_size=3, end_token=0)
    # before 0: {1, 2}, 1: {0}, 2: {1}: as above with the roles changed, Q = (0.5, 0.25, 0.25)
    assert bigram.discount == pytest.approx(0.6)
    assert conditional(bigram, None, 1) == pytest.approx(1.4 / 2 + 0.6 * 1 / 2 * 0.25)
    assert conditional(bigram, 1, 2) == pytest.approx(0.4 / 2 + 0.6 * 2 / 2 * 0.25)
    assert conditional(bigram, 2, 2) == pytest.approx(0.6 * 1 / 1 * 0.25)

    # 1 1 2 and an end: counts 2, 1, 1: D = 2/(2 + 2) = 0.5, freed 0.5 * 3/4 over four entries
    unigram = fit_unigram([[1, 1, 2]], vocab_size=4, end_token=0)
    share = 0.5 * 3 / 4 / 4
    assert unigram.probabilities == pytest.approx([0.125 + share, 0.375 + share, 0.125 + share, share])
    assert unigram.nats([[3, 1]])[0] == pytest.approx(-math.log(share) - math.log(0.375 + share))


def test_the_end_of_text_is_trained_but_not_judged():
    documents = [[1, 1, 1]] * 4
    model = fit_bigram(documents, vocab_size=2, end_token=0)
    judged = sum(math.log(conditional(model, c, 1)) for c in (None, 1, 1))
    assert model.nats([[1, 1, 1]])[0] == pytest.approx(-judged)
    assert conditional(model, 1, 0) == pytest.approx(4 / 12, abs=0.02)


def test_an_unseen_token_after_an_unseen_token_has_a_finite_loss():
    documents = [[1, 2, 3, 1, 2]]
    for fit in (fit_unigram, fit_bigram):
        assert np.isfinite(fit(documents, vocab_size=100_000, end_token=0).nats([[77_777, 88_888]])).all()


def random_documents(vocab_size, seed=0):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, 40, size=60)
    # squared, so that some pairs come often
    return [(generator.random(n) ** 2 * vocab_size).astype(np.int64) for n in lengths]


@pytest.mark.parametrize("vocab_size", [5, 60])
def test_random_text_is_judged_as_the_formulas_judge_it(vocab_size):
    training, held_out = random_documents(vocab_size), random_documents(vocab_size, seed=1)
    end = vocab_size - 1
    unigram = fit_unigram(training, vocab_size=vocab_size, end_token=end)
    bigram = fit_bigram(training, vocab_size=vocab_size, end_token=end)
    p1, p2 = reference_unigram(training, vocab_size, end), reference_bigram(training, vocab_size, end)
    assert unigram.nats(held_out) == pytest.approx([-sum(math.log(p1(w)) for w in d) for d in held_out])
    assert bigram.nats(held_out) == pytest.approx(
        [-sum(math.log(p2(c, w)) for c, w in zip([end, *d], d, strict=False)) for d in held_out]
    )


@pytest.mark.parametrize("fit", [fit_unigram, fit_bigram])
def test_packed_documents_and_lists_are_two_routes_to_one_answer(fit, monkeypatch):
    training, held_out = random_documents(9), random_documents(9, seed=1)

    def packed(documents):
        offsets = np.concatenate([[0], np.cumsum([len(d) for d in documents])])
        return Packed(np.concatenate(documents).astype(np.uint16), offsets)

    listed = fit(training, vocab_size=9, end_token=2).nats([list(d) for d in held_out])
    monkeypatch.setattr(ngrams, "CHUNK", 7)
    assert np.array_equal(fit(packed(training), vocab_size=9, end_token=2).nats(packed(held_out)), listed)


@pytest.mark.parametrize("fit", [fit_unigram, fit_bigram])
def test_nats_per_token_add_up_to_documents_and_to_blocks(fit):
    model = fit(random_documents(9), vocab_size=9, end_token=2)
    documents = [[], [1, 2, 3], [], [4, 5], []]
    per_token = model.token_nats(documents)
    assert per_token.shape == (5,)
    assert model.nats(documents) == pytest.approx([0, per_token[:3].sum(), 0, per_token[3:].sum(), 0])
    assert sum_spans(per_token, np.array([0, 2, 4, 5])) == pytest.approx(
        [per_token[:2].sum(), per_token[2:4].sum(), per_token[4]]
    )


@pytest.mark.parametrize("fit", [fit_unigram, fit_bigram])
def test_nothing_to_judge_is_no_error(fit):
    model = fit([[1, 2]], vocab_size=3, end_token=0)
    assert model.nats([]).shape == (0,)
    assert model.nats([[], []]).tolist() == [0.0, 0.0]


def test_judging_leaves_the_documents_as_they_were():
    packed = Packed(np.array([1, 2, 1]), np.array([0, 1, 3]))
    fit_bigram(packed, vocab_size=3, end_token=0).nats(packed)
    assert packed.tokens.tolist() == [1, 2, 1]


def test_the_bigram_learns_what_the_unigram_cannot():
    training = [[1, 2] * 20] * 5
    unigram, bigram = (fit(training, vocab_size=3, end_token=0) for fit in (fit_unigram, fit_bigram))
    assert bigram.nats([[1, 2] * 10])[0] < unigram.nats([[1, 2] * 10])[0] / 5


def test_pairs_of_a_large_vocabulary_do_not_collide():
    size = 256_000
    model = fit_bigram([[size - 1, size - 2, 1]] * 2 + [[1, 2, 3]], vocab_size=size, end_token=0)
    pairs = [(0, size - 1), (size - 1, size - 2), (size - 2, 1), (1, 0), (0, 1), (1, 2), (2, 3), (3, 0)]
    assert model.keys.tolist() == sorted(c * size + w for c, w in pairs)
    narrow = Packed(np.array([size - 1, size - 2], dtype=np.int32), np.array([0, 2]))
    assert model.nats(narrow) == pytest.approx(model.nats([[size - 1, size - 2]]))


def test_details_name_the_model_for_the_signature():
    assert fit_unigram([[1]], vocab_size=2, end_token=0).details == "model:unigram,absolute discounting"
    bigram = fit_bigram([[1], [1, 2]], vocab_size=3, end_token=0)
    assert bigram.details == "model:bigram,interpolated Kneser-Ney,D=0.600"


@pytest.mark.parametrize(
    ("documents", "end_token", "words"),
    [
        ([[1, 5]], 0, "ids from 0 to 4, found 5"),
        ([[-1, 2]], 0, "ids from 0 to 4, found -1"),
        ([[1]], 5, "end token from 0 to 4, found 5"),
        (Packed(np.array([1, 2]), np.array([0, 1])), 0, "offsets that ascend from 0 to the 2 tokens"),
        (Packed(np.array([1, 2]), np.array([0, 2, 1, 2])), 0, "offsets that ascend"),
        (Packed(np.array([1, 2]), np.array([], dtype=np.int64)), 0, "offsets that ascend"),
    ],
)
@pytest.mark.parametrize("fit", [fit_unigram, fit_bigram])
def test_wrong_ids_and_offsets_say_what_was_expected_and_found(fit, documents, end_token, words):
    with pytest.raises(ValueError, match=words):
        fit(documents, vocab_size=5, end_token=end_token)


def test_judging_an_id_outside_the_vocabulary_is_an_error():
    for fit in (fit_unigram, fit_bigram):
        with pytest.raises(ValueError, match="ids from 0 to 2, found 3"):
            fit([[1]], vocab_size=3, end_token=0).nats([[3]])
