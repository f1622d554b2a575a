"""The data stage: configuration in, :class:`~hftk.task.Splits` out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hftk.config import DataConfig, InputError, Problem
from hftk.console import note
from hftk.data.clean import Counts, add_counts
from hftk.data.columns import Incomplete
from hftk.data.dedup import conflicts, count_repeats, drop_repeats
from hftk.data.facts import characters, fingerprint, nothing_left, require_left
from hftk.data.readers import Reader, open_readers, to_dataset
from hftk.data.sources import Sources, find_sources, read_source
from hftk.data.split import carve, drop_overlap, keep_rare, prove_disjoint, require_rows
from hftk.data.tables import Part, append_part, empty_part, height, take_part
from hftk.task import Splits, Task

if TYPE_CHECKING:
    from datasets import Dataset


def load_splits(config: DataConfig, task: Task, source: Any = None) -> Splits:
    """Read, clean, de-duplicate and split the rows, and prove that the splits share none.

    Rows keep the columns of the task's roles, under the roles' names, in the order of the data.

    Args: config: where the rows are and how to split them. task: its ``columns`` say what is read;
        ``prepare`` looks through all rows at the end. source: from Python, in place of the paths: a pandas
        DataFrame, a list of dictionaries, a ``datasets.Dataset``, or a
            mapping (such as a ``DatasetDict``) from split names to any of these.

    Returns: Splits: in-memory Datasets; with ``streaming``, train is an IterableDataset that reads anew in
        every pass. ``facts``:

        ``sources`` (path, bytes, SHA-256), ``columns`` (role to column), ``choices`` (one line each),
        ``read`` (rows), ``cleaned`` (step to rows changed or dropped), ``duplicates``, ``conflicts``,
        ``overlap``, ``proof``, ``cut`` (rows beyond max_rows), ``rows``, ``characters`` and ``fingerprint``,
        all but the first three by split. What is carved by fractions counts under train in ``read`` and
        ``cleaned``.

    Raises: InputError: missing, empty, undecodable or broken data; missing columns; wrong types; a share too
        small to hold a row.
    """
    found = find_sources(config, source)
    readers, remarks = open_readers(found.splits, task.columns, config)
    facts: dict[str, Any] = {
        "sources": [
            {"split": split, **fact} for split, origin in found.splits.items() for fact in origin.facts
        ],
        "columns": dict(readers["train"].mapping),
        "choices": list(dict.fromkeys([*found.choices, *remarks])),
    }
    for line in facts["choices"]:
        note(line)
    if len(readers["train"].mapping) > 1 or readers["train"].unused:
        used = ", ".join(f"{role} = {column}" for role, column in readers["train"].mapping.items())
        left = ", ".join(readers["train"].unused[:8])
        note(f"columns: {used}" + (f" (not used: {left})" if left else ""))
    if config.streaming:
        from hftk.data.streams import stream_splits

        return stream_splits(readers, found.fractions, config, facts)
    parts, held = _read_all(readers, config, facts)
    try:
        parts = _separate(parts, found, config, readers["train"], facts)
    except InputError as error:  # such as a share too small, when incomplete rows are known already
        raise InputError(*held, *error.problems) from None
    parts, types = _prepare(parts, readers["train"], task, held, facts)
    parts = _cut(parts, config, facts)
    facts["proof"] = prove_disjoint({split: part.keys for split, part in parts.items()})
    splits = Splits(**_datasets(parts, readers["train"], types, facts), facts=facts)
    note(
        "rows: " + ", ".join(f"{count:,} {split}" for split, count in facts["rows"].items()) + _judged(splits)
    )
    return splits


def _judged(splits: Splits) -> str:
    """What is judged on what, where a split is missing."""
    if splits.held_out is None:
        return "; there is no validation or test split: nothing is judged"
    if splits.test is None:
        return (
            "; there is no test split: the final scores are on the validation split, and too good where"
            " choices were made by it"
        )
    return (
        ""
        if splits.validation is not None
        else "; there is no validation split: training runs without evaluations"
    )


def read_rows(
    source: Any,
    config: DataConfig,
    task: Task,
    *,
    roles: Collection[str] | None = None,
    setting: str = "data.path",
) -> tuple[Dataset, dict[str, Any]]:
    """The rows of one file, folder or glob (or Python object), mapped and cleaned as a split is, in order.

    Nothing is split or de-duplicated; empty rows are dropped and counted. A txt file is one document unless
    ``config.documents`` says otherwise.

    Args:
        roles: roles that are wanted, such as the inputs alone for prediction; default: all of the task's.
        setting: the setting that named ``source``, for messages.

    Returns: The rows and the facts about them: sources, columns, choices, and for the split ``rows``: read,
        cleaned, duplicates, rows, characters.
    """
    origin, choices = read_source(source, config, setting)
    readers, remarks = open_readers({"rows": origin}, task.columns, config, roles)
    reader = readers["rows"]
    facts: dict[str, Any] = {
        "sources": list(origin.facts),
        "columns": dict(reader.mapping),
        "choices": [*choices, *remarks],
    }
    parts, held = _read_all(readers, config, facts)
    facts["duplicates"] = {"rows": {"found": count_repeats(parts["rows"].keys), "dropped": 0}}
    parts, types = _prepare(parts, reader, task, held, facts)
    return _datasets(_cut(parts, config, facts), reader, types, facts)["rows"], facts


def _read_all(
    readers: Mapping[str, Reader], config: DataConfig, facts: dict[str, Any]
) -> tuple[dict[str, Part], list[Problem]]:
    """Every split in memory, and problems that the task's own are told with; what cannot wait is raised, of
    all splits together."""
    parts: dict[str, Part] = {}
    problems: list[Problem] = []
    held: list[Problem] = []
    facts["read"], facts["cleaned"] = {}, {}
    for split, reader in readers.items():
        part, counts, read = empty_part(reader.mapping), Counts(), 0
        incomplete = Incomplete(reader.mapping, reader.columns, config.incomplete)
        try:
            for chunk in reader.chunks(incomplete=incomplete):
                append_part(part, chunk.part)
                add_counts(counts, chunk.counts)
                read += chunk.read
        except InputError as error:
            problems += error.problems
            continue
        unlabelled = [
            role
            for role in reader.mapping
            if reader.columns[role].kind == "label" and incomplete.counts.get(role) == read
        ]
        if unlabelled and read and split != "train":  # as the test splits of GLUE
            note(f"the {split} split is left out: none of its {read:,} rows has a {unlabelled[0]}")
            continue
        held += incomplete.problems()
        if not part.keys:
            problems.append(nothing_left(reader, read, counts))
        parts[split] = part
        facts["read"][split], facts["cleaned"][split] = read, counts
    if problems:
        raise InputError(*held, *problems)
    return parts, held


def _separate(
    parts: Mapping[str, Part], found: Sources, config: DataConfig, train: Reader, facts: dict[str, Any]
) -> dict[str, Part]:
    """Carve, drop repeats, drop overlaps."""
    carved = carve(parts["train"], found.fractions, config.seed)
    parts = {
        split: part
        for split in ("train", "validation", "test")
        if (part := carved.get(split) or parts.get(split))
    }
    facts["conflicts"] = conflicts(parts, train.columns)
    differing = [
        f"{found['rows']:,} in {where}" for where, found in facts["conflicts"].items() if found["rows"]
    ]
    if differing and any(train.columns[role].kind == "label" for role in train.mapping):
        note(f"rows that repeat another one with another label: {', '.join(differing)}")
    facts["duplicates"] = {}
    kept: dict[str, Part] = {}
    for split, part in parts.items():
        repeats, dropped = count_repeats(part.keys), 0
        if split in found.fractions or (split == "train" and config.deduplicate):
            part, dropped = drop_repeats(part)
        kept[split] = part
        facts["duplicates"][split] = {"found": repeats, "dropped": dropped}
    rows = {split: len(kept[split].keys) for split in carved}
    origin = found.splits["train"]
    require_rows(rows, found.fractions, origin.name, documents=origin.documents, train_from=origin.setting)
    parts, facts["overlap"] = drop_overlap(kept)
    require_left(parts, facts["overlap"])
    parts, facts["rare"] = keep_rare(parts, found.fractions, train.columns)
    for split, rows in facts["rare"].items():
        note(
            f"{rows:,} rows that a fraction put into {split} are training rows: no other training row has"
            " their label"
        )
    return parts


def _prepare(
    parts: Mapping[str, Part], reader: Reader, task: Task, held: Sequence[Problem], facts: dict[str, Any]
) -> tuple[dict[str, Part], Mapping[str, Any]]:
    """The rows as the task prepares them, and the types of what is no text. Before ``max_rows`` cuts, so that
    all labels are seen.

    InputError: the ``held`` problems and those that the task finds, together.
    """
    places = {split: part.places for split, part in parts.items()}
    prepared = task.prepare({split: part.table for split, part in parts.items()}, places, reader.mapping)
    problems = [*held, *prepared.problems]
    if problems:
        raise InputError(*problems)
    facts.update(prepared.facts)
    return {
        split: part._replace(table=prepared.tables[split]) for split, part in parts.items()
    }, prepared.features


def _cut(parts: Mapping[str, Part], config: DataConfig, facts: dict[str, Any]) -> dict[str, Part]:
    """The first ``max_rows`` of each split."""
    most = config.max_rows
    facts["cut"] = {split: max(0, len(part.keys) - most) if most else 0 for split, part in parts.items()}
    return {
        split: take_part(part, range(most)) if most and facts["cut"][split] else part
        for split, part in parts.items()
    }


def _datasets(
    parts: Mapping[str, Part], reader: Reader, types: Mapping[str, Any], facts: dict[str, Any]
) -> dict[str, Any]:
    """Split to Dataset, with the counts of what is in them."""
    facts["rows"] = {split: height(part.table) for split, part in parts.items()}
    facts["characters"] = {split: characters(part, reader) for split, part in parts.items()}
    facts["fingerprint"] = {split: fingerprint(part) for split, part in parts.items()}
    return {split: to_dataset(part.table, reader.mapping, types) for split, part in parts.items()}
