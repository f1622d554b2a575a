from __future__ import annotations

import pytest

from hftk.config import DataConfig, InputError
from hftk.data.dedup import keys_of
from hftk.data.split import carve, drop_overlap, fractions_for, prove_disjoint, sides
from hftk.data.tables import Part
from hftk.task import Column

COLUMNS = {"text": Column(usual_names=())}


def part(*texts: str) -> Part:
    return Part(
        {"text": list(texts)},
        keys_of({"text": list(texts)}, COLUMNS),
        [("rows", i) for i in range(1, len(texts) + 1)],
    )


KEYS = part(*(f"document {i}" for i in range(20_000))).keys


def test_the_shares_are_met():
    where = sides(KEYS, {"validation": 0.05, "test": 0.2}, seed=0)
    assert where.count("validation") / len(KEYS) == pytest.approx(0.05, abs=0.005)
    assert where.count("test") / len(KEYS) == pytest.approx(0.2, abs=0.01)


def test_a_row_stays_on_its_side_when_other_rows_come_and_go():
    where = dict(zip(KEYS, sides(KEYS, {"test": 0.3}, seed=0), strict=True))
    assert all(
        where[key] == side
        for key, side in zip(KEYS[::7], sides(KEYS[::7], {"test": 0.3}, seed=0), strict=True)
    )


def test_the_test_rows_do_not_depend_on_the_validation_share():
    one, other = sides(KEYS, {"test": 0.1}, 0), sides(KEYS, {"test": 0.1, "validation": 0.3}, 0)
    assert [side == "test" for side in one] == [side == "test" for side in other]


def test_another_seed_splits_otherwise_and_the_same_seed_alike():
    fractions = {"test": 0.5}
    assert sides(KEYS, fractions, 1) == sides(KEYS, fractions, 1) != sides(KEYS, fractions, 2)


def test_shares_that_take_everything_leave_no_training_row():
    assert set(sides(KEYS, {"validation": 0.5, "test": 0.5}, 0)) == {"validation", "test"}


def test_carving_keeps_the_order_and_loses_nothing():
    whole = part(*(str(i) for i in range(200)))
    parts = carve(whole, {"validation": 0.3, "test": 0.3}, seed=0)
    texts = [text for p in parts.values() for text in p.table["text"]]
    assert sorted(texts) == sorted(whole.table["text"])
    assert all(p.table["text"] == sorted(p.table["text"], key=int) for p in parts.values())


def test_defaults_hold_for_one_unsplit_source_only():
    assert fractions_for(DataConfig(), ["train"], whole=True) == {"validation": 0.05, "test": 0.05}
    assert fractions_for(DataConfig(), ["train", "test"], whole=False) == {}
    assert fractions_for(DataConfig(validation_fraction=0.1), ["train", "test"], whole=False) == {
        "validation": 0.1
    }
    assert fractions_for(DataConfig(validation_fraction=0.0), ["train"], whole=True) == {"test": 0.05}


def test_a_split_that_is_given_cannot_be_carved_as_well():
    with pytest.raises(InputError, match="given twice"):
        fractions_for(DataConfig(test_fraction=0.1), ["train", "test"], whole=False)


def test_overlaps_are_dropped_from_train_first_and_never_from_test():
    parts, counts = drop_overlap(
        {"train": part("a", "b", "C", "d"), "validation": part("b", "e", "c"), "test": part("c", "x", "c")}
    )
    assert {split: p.table["text"] for split, p in parts.items()} == {
        "train": ["a", "d"],
        "validation": ["b", "e"],
        "test": ["c", "x", "c"],
    }
    assert counts == {"train_in_test": 1, "train_in_validation": 1, "validation_in_test": 1}
    assert all(len(p.keys) == len(p.table["text"]) for p in parts.values())


def test_the_proof_counts_distinct_keys_and_fails_on_a_shared_one():
    proof = prove_disjoint({"train": [1, 2, 2], "test": [3]})
    assert proof["keys"] == {"train": 2, "test": 1} and proof["overlap"] == 0
    with pytest.raises(RuntimeError):
        prove_disjoint({"train": [1, 2], "test": [2]})
