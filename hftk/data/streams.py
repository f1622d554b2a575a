"""Sets larger than memory: training rows as a stream, validation and test rows in memory up to a bound.

A row's side follows from its hash, so validation and test rows are recognized wherever they stand in the
stream. What is counted about training rows is counted while they are read: ``facts`` describes the newest
pass.
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Iterator, Mapping
from typing import Any

from hftk.config import DataConfig
from hftk.data.clean import Counts, add_counts
from hftk.data.dedup import count_repeats
from hftk.data.facts import characters, fingerprint, require_left
from hftk.data.readers import Reader, to_dataset
from hftk.data.split import SPLITS, drop_overlap, prove_disjoint, require_rows, sides
from hftk.data.tables import Part, Table, append, append_part, empty_part, height, take_part
from hftk.task import Splits

HELD_OUT_ROWS = 10_000
"""Rows of validation and of test that are kept of a streamed set where max_rows says nothing."""


def stream_splits(
    readers: Mapping[str, Reader], fractions: Mapping[str, float], config: DataConfig, facts: dict[str, Any]
) -> Splits:
    """Splits whose train is an IterableDataset. ``facts`` is filled now, and on as the stream is read."""
    from datasets import IterableDataset

    train = readers["train"]
    most = config.max_rows or HELD_OUT_ROWS
    facts.update(
        {name: {} for name in ("read", "cleaned", "duplicates", "rows", "characters", "fingerprint")}
    )
    parts, known = _carve(train, fractions, config.seed, most) if fractions else ({}, True)
    origin = train.source
    found = {"train": int(known), **{split: len(part.keys) for split, part in parts.items()}}
    require_rows(found, fractions, origin.name, documents=origin.documents, train_from=origin.setting)
    for split, reader in readers.items():
        if split != "train":
            parts[split] = _first_rows(reader, most, split, facts)
    parts = {split: parts[split] for split in SPLITS if split in parts}
    parts, facts["overlap"] = drop_overlap(parts)
    require_left(parts, facts["overlap"])
    for split, part in parts.items():
        facts["rows"][split] = height(part.table)
        facts["characters"][split] = characters(part, train)
        facts["fingerprint"][split] = fingerprint(part)
    facts["proof"] = {
        **prove_disjoint({split: part.keys for split, part in parts.items()}),
        "train": (
            "each row is compared with the keys of validation and test, and with the hash bounds, as it is"
            " read"
        ),
    }
    held_out = frozenset(key for part in parts.values() for key in part.keys)
    stream = TrainStream(train, fractions, config, held_out, facts)
    datasets = {split: to_dataset(part.table, train.mapping) for split, part in parts.items()}
    return Splits(train=IterableDataset.from_generator(stream), stream=stream, **datasets, facts=facts)


class _Pass:
    """What one pass over the rows has counted so far, and the keys that it has met."""

    def __init__(self, begin: Mapping[str, Any] | None, keys: bytes) -> None:
        begin = begin or {}
        none = dict.fromkeys(("read", "rows", "characters", "repeats", "overlap", "carved"), 0)
        self.counts: dict[str, int] = {**none, **begin.get("counts", {})}
        self.cleaned: Counts = copy.deepcopy(begin.get("cleaned", {}))
        self.keys = array("Q", keys)
        """Of the rows that were kept, in order."""
        self.seen = set(self.keys)

    def state(self, begin: Any) -> dict[str, Any]:
        """As plain values, for a pass that is to go on at ``begin`` of the reader."""
        return {
            "begin": begin,
            "counts": dict(self.counts),
            "cleaned": copy.deepcopy(self.cleaned),
            "keys": len(self.keys),
        }

    def count(self, table: Table) -> None:
        """Rows that are given out."""
        self.counts["rows"] += height(table)
        texts = (value for values in table.values() for value in values if isinstance(value, str))
        self.counts["characters"] += sum(map(len, texts))


class TrainStream:
    """Training rows, one dictionary each; every call is a new pass and gives the same rows in the same order.

    With ``deduplicate`` the keys of one pass are kept, about 100 bytes per row.
    """

    def __init__(
        self,
        reader: Reader,
        fractions: Mapping[str, float],
        config: DataConfig,
        held_out: frozenset[int],
        facts: dict[str, Any],
    ) -> None:
        self.reader, self.fractions, self.config, self.held_out, self.facts = (
            reader,
            dict(fractions),
            config,
            held_out,
            facts,
        )
        self.passes = 0
        self._now = _Pass(None, b"")

    def __call__(self) -> Iterator[dict[str, Any]]:
        now = _Pass(None, b"")
        for _, table in self._tables(now, None):
            roles = list(table)
            for values in zip(*table.values(), strict=True):
                row = dict(zip(roles, values, strict=True))
                now.count({role: [value] for role, value in row.items()})
                yield row

    def batches(
        self, size: int, begin: Mapping[str, Any] | None = None, keys: bytes = b""
    ) -> Iterator[tuple[dict[str, Any], Table]]:
        """The rows of a pass, ``size`` at a time, each time with what begins there: plain values, fit for
        JSON.

        With ``begin``, and the ``keys`` that :meth:`keys` gave, a pass goes on there; what stands before is
        not read again, as far as the format of the data allows it (compressed files and Parquet are read but
        not parsed, whole files are left out).
        """
        now = self._now = _Pass(begin, keys)
        left_out = int((begin or {}).get("rows_before", 0))
        here: dict[str, Any] = {}
        waiting: Table = {}
        for state, table in self._tables(now, begin):
            now.count(table)
            given, rows = left_out, height(table)
            left_out = 0
            while given < rows:
                if not waiting:
                    here = {**state, "rows_before": given}
                until = min(rows, given + size - height(waiting))
                append(waiting, {role: values[given:until] for role, values in table.items()})
                given = until
                if height(waiting) == size:
                    yield here, waiting
                    waiting = {}
        if waiting:
            yield here, waiting

    def keys(self, begin: Mapping[str, Any]) -> bytes:
        """What has to be kept beside ``begin`` of the present pass: the keys of the rows before, 8 bytes each
        (with ``deduplicate``)."""
        return self._now.keys[: begin["keys"]].tobytes()

    def _tables(self, now: _Pass, begin: Mapping[str, Any] | None) -> Iterator[tuple[dict[str, Any], Table]]:
        """The training rows of each chunk, with the state in which the chunk is begun. The caller counts what
        it gives out."""
        self.passes += 1
        complete = False
        try:
            for chunk in self.reader.chunks(patient=False, begin=begin and begin["begin"]):
                state = now.state(chunk.begin)
                now.counts["read"] += chunk.read
                add_counts(now.cleaned, chunk.counts)
                part = take_part(chunk.part, self._kept(chunk.part, now))
                if self.config.max_rows:
                    part = take_part(
                        part, range(min(len(part.keys), self.config.max_rows - now.counts["rows"]))
                    )
                self._report(now, complete)
                yield state, part.table
                if self.config.max_rows and now.counts["rows"] >= self.config.max_rows:
                    break
            complete = True
        finally:
            self._report(now, complete)

    def _kept(self, part: Part, now: _Pass) -> list[int]:
        """Indices of the training rows of a chunk; what the pass has counted is brought up to date."""
        kept, counts = [], now.counts
        where = (
            sides(part.keys, self.fractions, self.config.seed)
            if self.fractions
            else ["train"] * len(part.keys)
        )
        for i, (key, side) in enumerate(zip(part.keys, where, strict=True)):
            if side != "train":
                counts["carved"] += 1
            elif key in self.held_out:
                counts["overlap"] += 1
            elif key in now.seen:
                counts["repeats"] += 1
            else:
                if self.config.deduplicate:
                    now.seen.add(key)
                    now.keys.append(key)
                kept.append(i)
        return kept

    def _report(self, now: _Pass, complete: bool) -> None:
        facts, counts = self.facts, now.counts
        facts["read"]["train"] = counts["read"]
        facts["cleaned"]["train"] = now.cleaned
        facts["duplicates"]["train"] = {"found": counts["repeats"], "dropped": counts["repeats"]}
        facts["overlap"]["train_in_validation_or_test"] = counts["overlap"]
        facts["rows"]["train"] = counts["rows"]
        facts["characters"]["train"] = counts["characters"]
        facts["stream"] = {"passes": self.passes, "complete": complete, "carved": counts["carved"]}


def _carve(
    reader: Reader, fractions: Mapping[str, float], seed: int, most: int
) -> tuple[dict[str, Part], bool]:
    """The first rows of each carved split, repeats dropped, and whether a training row was seen; stops as
    soon as all are full."""
    parts = {split: empty_part(reader.mapping) for split in fractions}
    seen: set[int] = set()
    known = False
    for chunk in reader.chunks(patient=False):
        where = sides(chunk.part.keys, fractions, seed)
        known = known or "train" in where
        for split, part in parts.items():
            rows = []
            for i, (key, side) in enumerate(zip(chunk.part.keys, where, strict=True)):
                if side == split and key not in seen:
                    seen.add(key)
                    rows.append(i)
            append_part(part, take_part(chunk.part, rows[: most - len(part.keys)]))
        if known and all(len(part.keys) >= most for part in parts.values()):
            break
    return parts, known


def _first_rows(reader: Reader, most: int, split: str, facts: dict[str, Any]) -> Part:
    """The first rows of a given split."""
    part, counts, read = empty_part(reader.mapping), Counts(), 0
    for chunk in reader.chunks():
        append_part(part, take_part(chunk.part, range(min(len(chunk.part.keys), most - len(part.keys)))))
        add_counts(counts, chunk.counts)
        read += chunk.read
        if len(part.keys) >= most:
            break
    facts["read"][split], facts["cleaned"][split] = read, counts
    facts["duplicates"][split] = {"found": count_repeats(part.keys), "dropped": 0}
    return part
