"""Training, validation and test rows: fractions by hash, removal of overlaps, and the proof that none is
left.

A row's side follows from its key and the seed alone, so that identical rows stay on one side, adding rows
moves no other row, and a stream splits without being held in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from hftk.config import DataConfig, InputError, Problem
from hftk.data.tables import Part, append_part, take_part
from hftk.task import Column

SPLITS = ("train", "validation", "test")
DEFAULT_FRACTION = 0.05
"""Share of an unsplit source that becomes validation, and as much again test, where nothing is said."""


def fractions_for(config: DataConfig, given: Collection[str], *, whole: bool) -> dict[str, float]:
    """Share of the training source that each evaluation split is carved from; splits with no share are left
    out.

    Args:
        given: splits that the source brings along.
        whole: whether it is one unsplit source, for which a share of 0.05 each is the default.
    """
    fractions = {}
    for split in SPLITS[1:]:
        asked = getattr(config, f"{split}_fraction")
        if asked and split in given:
            raise InputError(
                Problem(
                    setting=f"data.{split}_fraction",
                    message=f"the {split} rows are given twice: by the data and by a fraction",
                    fix=f"leave out --data.{split}_fraction, or give the training rows alone by --data.train",
                )
            )
        share = (DEFAULT_FRACTION if whole else 0.0) if asked is None else asked
        if share:
            fractions[split] = share
    return fractions


def sides(keys: Sequence[int], fractions: Mapping[str, float], seed: int) -> list[str]:
    """(rows,) the split of each row: validation or test for the asked shares, train for the rest.

    The key, mixed with the seed by the finalizer of SplitMix64 (Steele, Lea and Flood 2014), is a number from
    0 to 1.
    """
    import numpy as np

    names = [split for split in reversed(SPLITS) if fractions.get(split)]
    salt = int.from_bytes(blake2b(str(seed).encode(), digest_size=8).digest(), "big")
    mixed = np.array(keys, dtype=np.uint64) ^ np.uint64(salt)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # finalizer of SplitMix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    shares = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    bounds = np.cumsum([fractions[split] for split in names])
    return [[*names, "train"][i] for i in np.searchsorted(bounds, shares, side="right")]


def carve(part: Part, fractions: Mapping[str, float], seed: int) -> dict[str, Part]:
    """The rows of one source as train and the splits in ``fractions``; some may be empty."""
    if not fractions:
        return {"train": part}
    where = sides(part.keys, fractions, seed)
    rows: dict[str, list[int]] = {split: [] for split in SPLITS if split == "train" or split in fractions}
    for i, split in enumerate(where):
        rows[split].append(i)
    return {split: take_part(part, indices) for split, indices in rows.items()}


def drop_overlap(parts: Mapping[str, Part]) -> tuple[dict[str, Part], dict[str, int]]:
    """Drop validation rows that stand in test, and training rows that stand in validation or test.

    Also the counts, {"train_in_test": rows, "train_in_validation": rows, "validation_in_test": rows}; a
    training row in both counts as in test. Test is never touched.
    """
    counts = {}
    kept = dict(parts)
    for split, others in (("train", ("test", "validation")), ("validation", ("test",))):
        part = parts.get(split)
        if part is None:
            continue
        taken: set[int] = set()
        for other in others:
            if other not in parts:
                continue
            known = set(parts[other].keys)
            counts[f"{split}_in_{other}"] = sum(key in known and key not in taken for key in part.keys)
            taken |= known
        if any(counts.get(f"{split}_in_{other}") for other in others):
            kept[split] = take_part(part, [i for i, key in enumerate(part.keys) if key not in taken])
    return kept, counts


def keep_rare(
    parts: Mapping[str, Part], carved: Collection[str], columns: Mapping[str, Column]
) -> tuple[dict[str, Part], dict[str, int]]:
    """Give rows of ``carved`` splits back to train where no training row has their label, and count them by
    split.

    A class of a few rows may fall wholly into one side of the hash. Nothing is moved where labels are numbers
    that are not whole (regression), where one text holds several labels, or where more than a tenth of a
    split would go: then the column holds no classes.
    """
    role = next((role for role in parts["train"].table if columns[role].kind == "label"), None)
    if (
        role is None
        or columns[role].nullable
        or any(isinstance(v, float) and v == v and v % 1 for v in parts["train"].table[role])
    ):
        return dict(parts), {}
    known = {name for value in parts["train"].table[role] for name in _classes(value)}
    kept, counts = dict(parts), {}
    for split in carved:
        if split not in parts:
            continue
        rare = [
            i for i, value in enumerate(parts[split].table[role]) if not known.issuperset(_classes(value))
        ]
        rows = len(parts[split].keys)
        if rare and len(rare) <= max(1, rows // 10) and len(rare) < rows:
            moved, gone = take_part(parts[split], rare), set(rare)
            kept[split] = take_part(parts[split], [i for i in range(rows) if i not in gone])
            kept["train"] = take_part(kept["train"], range(len(kept["train"].keys)))  # a copy to add to
            append_part(kept["train"], moved)
            known |= {name for value in moved.table[role] for name in _classes(value)}
            counts[split] = len(rare)
    return kept, counts


def _classes(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, list | tuple) else [str(value)]


def prove_disjoint(keys: Mapping[str, Collection[int]]) -> dict[str, Any]:
    """Intersect the key sets of every two splits: {"method", "keys": {split: distinct keys}, "overlap": 0}.

    RuntimeError if they share a key, which would be a bug here and not a mistake in the input.
    """
    sets = {split: set(values) for split, values in keys.items()}
    names = list(sets)
    shared = sum(len(sets[a] & sets[b]) for i, a in enumerate(names) for b in names[i + 1 :])
    if shared:
        raise RuntimeError(f"{shared} rows stand in two splits after overlaps were dropped")
    return {
        "method": (
            "64-bit BLAKE2b of the NFKC, case-folded, white-space-collapsed inputs; every two splits"
            " intersected"
        ),
        "keys": {split: len(values) for split, values in sets.items()},
        "overlap": shared,
    }


def require_rows(
    rows: Mapping[str, int],
    fractions: Mapping[str, float],
    source: str,
    *,
    documents: str | None,
    train_from: str,
) -> None:
    """InputError where a share left a split without rows.

    Args:
        rows: split to rows after carving.
        source: name of the source in the message.
        documents: how its text is cut into documents (--data.documents), None where rows are given.
        train_from: the setting that names the source.
    """
    problems = []
    total = sum(rows.values())
    what = "document" if documents else "row"
    finer = {"file": ["--data.documents paragraph (or line)"], "paragraph": ["--data.documents line"]}.get(
        documents or "", []
    )
    for split, count in rows.items():
        if count or not fractions or (split != "train" and split not in fractions):
            continue
        share = (
            f"a share of {fractions[split]:g} leaves {split}"
            if split in fractions
            else "the shares leave training"
        )
        ways = list(finer)
        if split == "train":
            ways.append("smaller --data.validation_fraction and --data.test_fraction")
        else:
            ways.append(f"a larger --data.{split}_fraction, or 0 for none")
            ways.append(f"--data.train FILE --data.{split} FILE")
        problems.append(
            Problem(
                setting=f"data.{split}_fraction" if split in fractions else train_from,
                message=f"{source} has {total} {what}{'' if total == 1 else 's'}: {share} empty",
                fix="use " + "; or ".join(ways),
            )
        )
    if problems:
        raise InputError(*problems)
