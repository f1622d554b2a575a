from __future__ import annotations

import math

import numpy as np
import pytest

from hftk.metrics.bootstrap import ratio_interval
from hftk.metrics.perplexity import Counts, perplexity_scores

SETTINGS = {"context": 256, "stride": 256, "tokenizer_name": "byte_bpe[4096]", "resamples": 200, "seed": 0}


def scores_of(*args, **changes):
    return {score.name: score for score in perplexity_scores(*args, **{**SETTINGS, **changes})}


def random_counts(n, seed=0):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(1, 50, size=n)
    return Counts(tokens * generator.uniform(1, 4, size=n), tokens, tokens * 3)


def test_a_model_that_spreads_evenly_over_eight_tokens_has_perplexity_eight():
    tokens = np.array([4, 2])
    scores = scores_of(tokens * math.log(8), tokens, tokens * 2)
    assert scores["loss"].value == pytest.approx(math.log(8))
    assert scores["perplexity"].value == pytest.approx(8)
    # three bits a token, two bytes a token
    assert scores["bits_per_byte"].value == pytest.approx(1.5)
    assert [(s.unit, s.higher_is_better) for s in scores.values()] == [
        ("", False),
        ("nats/token", False),
        ("bits/byte", False),
    ]


def test_the_loss_is_a_mean_over_tokens_and_not_over_documents():
    scores = scores_of([9.0, 3.0], [9, 1], [9, 1])
    assert scores["loss"].value == pytest.approx(1.2)
    assert scores["perplexity"].value == pytest.approx(math.exp(1.2))


def test_cutting_documents_in_two_keeps_the_values():
    whole, parts = scores_of([5.0, 7.0], [2, 4], [6, 8]), scores_of([2.0, 3.0, 7.0], [1, 1, 4], [5, 1, 8])
    assert [s.value for s in whole.values()] == [s.value for s in parts.values()]


def test_twenty_documents_are_resampled_and_their_blocks_are_not():
    documents = random_counts(20)
    scores = scores_of(*documents, blocks=Counts(*(np.repeat(np.asarray(c) / 2, 2) for c in documents)))
    loss = scores["loss"]
    assert loss.n == 20
    assert loss.interval == pytest.approx(
        ratio_interval(documents.nats, documents.tokens, resamples=200, seed=0)
    )
    assert (
        loss.signature
        == "tokens:byte_bpe[4096]|context:256|stride:256|bootstrap:documents[200]|end_of_text:not"
        " counted|hftk"
    )


@pytest.mark.parametrize("documents", [1, 19])
def test_the_blocks_of_fewer_than_twenty_documents_are_resampled(documents):
    blocks = random_counts(40)
    offsets = np.arange(documents)
    documents = [np.add.reduceat(column, offsets) for column in blocks]
    loss = scores_of(*documents, blocks=blocks)["loss"]
    assert loss.n == 40
    assert loss.interval == pytest.approx(ratio_interval(blocks.nats, blocks.tokens, resamples=200, seed=0))
    assert "bootstrap:blocks[200]" in loss.signature


def test_blocks_that_are_no_finer_than_the_documents_are_not_used():
    documents = random_counts(5)
    loss = scores_of(*documents, blocks=documents)["loss"]
    assert loss.n == 5 and "bootstrap:documents[200]" in loss.signature


def test_empty_documents_are_not_resampled():
    full = random_counts(20)
    padded = Counts(*(np.concatenate([column, np.zeros(9)]) for column in full))
    assert scores_of(*padded) == scores_of(*full)


def test_all_three_intervals_come_from_the_same_resamples():
    scores = scores_of(*random_counts(30))
    low, high = scores["loss"].interval
    assert low < scores["loss"].value < high
    assert scores["perplexity"].interval == (math.exp(low), math.exp(high))
    # three bytes a token in every document
    assert scores["bits_per_byte"].interval == pytest.approx((low / 3 / math.log(2), high / 3 / math.log(2)))


@pytest.mark.parametrize(("documents", "resamples"), [(1, 200), (30, 0)])
def test_there_is_no_interval_of_one_document_or_without_resamples(documents, resamples):
    scores = scores_of(*random_counts(documents), resamples=resamples)
    assert all(score.interval is None and "bootstrap:none" in score.signature for score in scores.values())


@pytest.mark.filterwarnings("error")
def test_a_loss_too_large_for_exp_is_an_infinite_perplexity():
    scores = scores_of([7100.0, 6900.0, 9000.0], [10, 10, 10], [10, 10, 10])
    assert scores["perplexity"].value == math.inf
    assert scores["perplexity"].interval[1] == math.inf
    assert scores["loss"].value == pytest.approx(23000 / 30)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_shows_and_has_no_interval(bad):
    scores = scores_of(
        [1.0, bad, 2.0],
        [1, 1, 1],
        [1, 1, 1],
        blocks=Counts([1.0, bad, 1.0, 1.0], [1, 1, 0.5, 0.5], [1, 1, 1, 0]),
    )
    for score in scores.values():
        assert str(score.value) == str(bad)
        assert score.interval is None


def test_details_stand_in_the_signature():
    signature = scores_of([1.0], [1], [1], details="model:unigram")["loss"].signature
    assert signature.endswith("|end_of_text:not counted|model:unigram|hftk")


@pytest.mark.parametrize(
    ("counts", "blocks", "words"),
    [
        (([], [], []), None, "at least one token to predict, found none in 0 documents"),
        (([0.0, 0.0], [0, 0], [0, 0]), None, "at least one token to predict, found none in 2 documents"),
        (([1.0], [1], [0]), None, "found 0: bits per byte"),
        (([1.0], [1, 2], [1, 2]), None, "one shape"),
        (([1.0], [-1], [1]), None, "found a negative one"),
        (([3.0], [2], [2]), Counts([1.0, 1.0], [1, 1], [1, 1]), r"found \(2, 2, 2\) and \(3, 2, 2\)"),
    ],
)
def test_counts_that_make_no_score_say_why(counts, blocks, words):
    with pytest.raises(ValueError, match=words):
        scores_of(*counts, blocks=blocks)
