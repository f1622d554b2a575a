"""Where rows come from: files, a Hub id, a sample, or a Python object, all read in the same chunks."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hftk.config import DataConfig, InputError, Problem
from hftk.data import files as data_files
from hftk.data.files import File, format_of, split_of
from hftk.data.formats import CHUNK, Cursor, Documents, read_file, settle
from hftk.data.samples import load_sample
from hftk.data.split import SPLITS, fractions_for
from hftk.data.tables import Table, from_records, height

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_MANY_FILES = 20
_HASHED_STREAM = 1 << 30  # bytes; above it a streamed file is not hashed, which would read it whole first


class Chunk(NamedTuple):
    """Some rows as they are in the data."""

    place: str
    """The file, or the name of the source."""
    start: int
    """Number of the first row in that place, from 1."""
    table: Table
    begin: Any = None
    """What ``Source.read`` takes to begin with this chunk; plain values, fit for JSON."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The rows of one split, or of everything. Reading starts anew with each call of ``read``."""

    name: str
    """As messages call it."""
    setting: str
    """The setting that named it."""
    read: Callable[..., Iterator[Chunk]]
    """Columns that are wanted (None: all), and where to begin (None: at the beginning), to chunks; columns
    beyond the wanted ones may come along."""
    facts: list[dict[str, Any]]
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Column of class numbers to the names of the classes."""
    documents: Documents | None = None
    """How txt files are cut into documents; None for other formats."""

    def peek(self) -> Table:
        """The first chunk; {} where there is no row."""
        return next((chunk.table for chunk in self.read(None) if height(chunk.table)), {})


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What was found."""

    splits: dict[str, Source]
    """train, and validation and test where they are given."""
    fractions: dict[str, float]
    """Shares of train that become validation and test."""
    choices: list[str]
    """What was chosen without being told, one line each with the reason."""


def find_sources(config: DataConfig, source: Any = None) -> Sources:
    """Look up ``source``, else --data.sample, --data.train and the others, or --data.path. InputError where
    nothing is there."""
    if source is not None:
        return _from_python(config, source)
    if config.sample is not None:
        rows = load_sample(config.sample)
        sample = _from_rows(
            rows,
            f"sample {config.sample}",
            "data.sample",
            {"sample": config.sample, "python": sys.version.split()[0]},
        )
        return _assemble(config, {"train": sample}, whole=True)
    if config.train is not None:
        return _from_files(config, _given_files(config), whole=False)
    if config.path is None:
        raise InputError(
            Problem(
                setting="data.path",
                message="expected a file, folder, glob or Hub id, found no data at all",
                fix=(
                    "add --data.path FILE (or --data.train FILE --data.validation FILE, or --data.sample"
                    " python_docs)"
                ),
            )
        )
    found = data_files.find_files(config.path, "data.path", config.format)
    if found is None:
        return _from_hub(config, config.path)
    files, root, remarks = found
    named = data_files.by_split(files, root) if root.is_dir() else None
    if named is None:
        return _from_files(config, {"train": files}, whole=True, remarks=remarks)
    return _from_files(config, named, whole=list(named) == ["train"], remarks=remarks)


def read_source(source: Any, config: DataConfig, setting: str = "data.path") -> tuple[Source, list[str]]:
    """One source for all rows of a file, folder, glob or Python object, and what was chosen; splits are not
    told apart."""
    if not isinstance(source, (str, Path)):
        return _one_python(source, "rows", setting), []
    found = data_files.find_files(str(source), setting, config.format)
    if found is None:
        raise InputError(data_files.missing(str(source), setting))
    files, _, choices = found
    return (
        _file_source(config, files, "file" if config.documents == "auto" else config.documents, choices),
        choices,
    )


def _given_files(config: DataConfig) -> dict[str, list[File]]:
    """--data.train, --data.validation and --data.test; every missing one is reported at once."""
    named: dict[str, list[File]] = {}
    problems: list[Problem | str] = []
    for split in SPLITS:
        pattern = getattr(config, split)
        if pattern is None:
            continue
        try:
            found = data_files.find_files(pattern, f"data.{split}", config.format)
        except InputError as error:
            problems += error.problems
            continue
        if found is None:
            problems.append(data_files.missing(pattern, f"data.{split}"))
        else:
            named[split] = found[0]
    if problems:
        raise InputError(*problems)
    return named


def _from_files(
    config: DataConfig, named: Mapping[str, list[File]], *, whole: bool, remarks: Sequence[str] = ()
) -> Sources:
    _require_train(named, config.path or "")
    fractions = fractions_for(config, named, whole=whole)
    documents, reason = _documents(config, named, divided=bool(fractions) or whole)
    choices = [*remarks, *([reason] if reason else [])]
    splits = {split: _file_source(config, files, documents, choices) for split, files in named.items()}
    return _assemble(config, splits, whole=whole, choices=choices)


def _file_source(
    config: DataConfig, files: Sequence[File], documents: Documents, choices: list[str]
) -> Source:
    """The files as one source; what had to be chosen to read them is added to ``choices``."""
    settled = []
    for file in files:
        file, reason = settle(file, config.encoding)
        settled.append(file)
        if reason:
            choices.append(reason)

    def read(columns: Collection[str] | None, begin: Any = None) -> Iterator[Chunk]:
        first, start, stand = begin or (0, 1, [])
        for number, file in enumerate(settled[first:], first):
            cursor = Cursor(*stand)
            chunks = read_file(
                file, encoding=config.encoding, documents=documents, columns=columns, cursor=cursor
            )
            while True:
                begin = [number, start, list(astuple(cursor))]
                table = next(chunks, None)
                if table is None:
                    break
                yield Chunk(str(file.path), start, table, begin)
                start += height(table)
            start, stand = 1, []

    hashed = not config.streaming or sum(file.path.stat().st_size for file in files) <= _HASHED_STREAM
    name = str(files[0].path) if len(files) == 1 else f"{files[0].path.parent} ({len(files)} files)"
    return Source(
        name=name,
        setting=files[0].setting,
        read=read,
        facts=data_files.file_facts(files, hashed=hashed),
        documents=documents if files[0].format == "txt" else None,
    )


def _documents(
    config: DataConfig, named: Mapping[str, list[File]], *, divided: bool
) -> tuple[Documents, str]:
    """What one document of a txt file is, and the line that says why where it was chosen here."""
    if config.documents != "auto":
        return config.documents, ""
    files = [file for group in named.values() for file in group]
    if not any(file.format == "txt" for file in files):
        return "file", ""
    if not divided:
        return (
            "file",
            "documents: one per file, because the splits are given as files (--data.documents file)",
        )
    if len(files) >= _MANY_FILES:
        return (
            "file",
            f"documents: one per file, because there are {len(files)} files (--data.documents file)",
        )
    count = "1 file" if len(files) == 1 else f"{len(files)} files"
    return (
        "paragraph",
        (
            f"documents: one per paragraph, because {count} would be too few to split (--data.documents"
            " paragraph)"
        ),
    )


def _from_hub(config: DataConfig, path: str) -> Sources:
    from hftk.data.hub import load_hub  # imports datasets, which files do not need at this point

    if not _HUB_ID.fullmatch(path) or format_of(Path(path)):
        raise InputError(data_files.missing(path, "data.path"))
    loaded, facts = load_hub(
        path, config.subset, streaming=config.streaming, missing=data_files.missing(path, "data.path")
    )
    named, choices = _split_names(loaded, path, strict=False)
    splits = {}
    for split, names in named.items():
        parts = [
            _from_dataset(loaded[name], f"{path} ({name})", "data.path", {**facts, "part": name})
            for name in names
        ]
        splits[split] = _joined(parts)
    return _assemble(config, splits, whole=list(splits) == ["train"], choices=choices)


def _from_python(config: DataConfig, source: Any) -> Sources:
    if not isinstance(source, Mapping):
        return _assemble(config, {"train": _one_python(source, "source", "")}, whole=True)
    dataset_dict = type(source).__module__.startswith("datasets")
    named, choices = _split_names(source, "source", strict=not dataset_dict)
    splits = {
        split: _joined([_one_python(source[name], f"source[{name!r}]", "") for name in names])
        for split, names in named.items()
    }
    return _assemble(config, splits, whole=dataset_dict and list(splits) == ["train"], choices=choices)


def _one_python(source: Any, name: str, setting: str) -> Source:
    """A DataFrame, a list of dictionaries or a Dataset. InputError for anything else."""
    pandas, datasets = sys.modules.get("pandas"), sys.modules.get("datasets")
    if datasets is not None and isinstance(source, (datasets.Dataset, datasets.IterableDataset)):
        return _from_dataset(source, name, setting, {"python": type(source).__name__})
    if pandas is not None and isinstance(source, pandas.DataFrame):
        facts = {"python": "DataFrame", "rows": len(source)}
        return Source(name=name, setting=setting, read=partial(_frame_chunks, source, name), facts=[facts])
    if (
        isinstance(source, Sequence)
        and not isinstance(source, (str, bytes))
        and all(isinstance(row, Mapping) for row in source)
    ):
        return _from_rows(source, name, setting, {"python": "list", "rows": len(source)})
    found = type(source).__name__
    if isinstance(source, Sequence) and not isinstance(source, (str, bytes)):
        found = f"{found} of {', '.join(sorted({type(row).__name__ for row in source}))}"
    message = (
        f"{name}: expected a pandas DataFrame, a list of dictionaries or a datasets.Dataset, found {found}"
    )
    raise InputError(
        Problem(setting=setting, message=message, fix='for texts alone: [{"text": text} for text in texts]')
    )


def _from_rows(rows: Sequence[Mapping[str, Any]], name: str, setting: str, facts: dict[str, Any]) -> Source:
    def read(columns: Collection[str] | None, begin: Any = None) -> Iterator[Chunk]:
        for start in range(begin or 0, len(rows), CHUNK):
            yield Chunk(name, start + 1, from_records(rows[start : start + CHUNK]), start)

    return Source(name=name, setting=setting, read=read, facts=[facts])


def _frame_chunks(
    frame: Any, name: str, columns: Collection[str] | None, begin: Any = None
) -> Iterator[Chunk]:
    wanted = [column for column in frame.columns if columns is None or str(column) in columns]
    for start in range(begin or 0, len(frame), CHUNK):
        part = frame.iloc[start : start + CHUNK][wanted]
        table: Table = {}
        for column in wanted:
            cells = part[column].astype(object).where(part[column].notna(), None).tolist()
            table[str(column)] = [
                c.tolist() if hasattr(c, "tolist") else c for c in cells
            ]  # lists out of Parquet are arrays
        yield Chunk(name, start + 1, table, start)


def _from_dataset(dataset: Any, name: str, setting: str, facts: dict[str, Any]) -> Source:
    features = dataset.features or {}
    inner = {
        column: getattr(feature, "feature", feature) for column, feature in features.items()
    }  # of a list: its entries'
    labels = {column: list(feature.names) for column, feature in inner.items() if hasattr(feature, "int2str")}

    def read(columns: Collection[str] | None, begin: Any = None) -> Iterator[Chunk]:
        part = dataset.with_format(None)
        if columns is not None and part.column_names is not None:
            part = part.select_columns([column for column in part.column_names if column in columns])
        before, stand = begin or (0, None)
        is_stream = hasattr(part, "load_state_dict")
        if is_stream and stand is not None:
            part.load_state_dict(json.loads(stand))
        elif before:
            part = part.skip(before) if is_stream else part.select(range(before, len(part)))
        batches = part.iter(batch_size=CHUNK)
        while True:
            begin = [before, _as_json(part.state_dict()) if is_stream else None]
            batch = next(batches, None)
            if batch is None:
                break
            table = {column: list(values) for column, values in batch.items()}
            yield Chunk(name, before + 1, table, begin)
            before += height(table)

    if hasattr(dataset, "__len__"):
        facts = {**facts, "rows": len(dataset)}
    return Source(name=name, setting=setting, read=read, facts=[facts], labels=labels)


def _as_json(state: Any) -> str | None:
    """None for what JSON does not hold: then rows are counted off instead."""
    try:
        return json.dumps(state)
    except (TypeError, ValueError):
        return None


def _joined(sources: Sequence[Source]) -> Source:
    """Several sources of one split, one after the other."""
    if len(sources) == 1:
        return sources[0]

    def read(columns: Collection[str] | None, begin: Any = None) -> Iterator[Chunk]:
        first, inside = begin or (0, None)
        for number, source in enumerate(sources[first:], first):
            for chunk in source.read(columns, inside):
                yield chunk._replace(begin=[number, chunk.begin])
            inside = None

    return Source(
        name=" and ".join(source.name for source in sources),
        setting=sources[0].setting,
        read=read,
        facts=[fact for source in sources for fact in source.facts],
        labels=sources[0].labels,
    )


def _split_names(
    names: Iterable[str], source: str, *, strict: bool
) -> tuple[dict[str, list[str]], list[str]]:
    """Split to the names that mean it. A single name that means none is everything.

    Args:
        strict: whether a name that means no split is an error; else it is left out with a remark.
    """
    names = [str(name) for name in names]
    named: dict[str, list[str]] = {}
    others = []
    for name in names:
        try:
            split = split_of(name)
        except ValueError:
            split = None
        if split is None:
            others.append(name)
        else:
            named.setdefault(split, []).append(name)
    if not named and len(names) == 1 and not strict:
        return {"train": names}, [f"{source} has one split, {names[0]}: it is taken as the training source"]
    if others and (strict or not named):
        raise InputError(
            Problem(
                setting="",
                message=(
                    f"{source}: expected splits named train, validation and test, found {', '.join(names)}"
                ),
                fix="rename them; for one unsplit source hand in the rows themselves",
            )
        )
    _require_train(named, source)
    choices = [
        f"{source}: split {name} is left out, it is neither train, validation nor test" for name in others
    ]
    choices += [
        f"{source}: {' and '.join(several)} together are {split}"
        for split, several in named.items()
        if len(several) > 1
    ]
    return named, choices


def _require_train(named: Collection[str], source: str) -> None:
    if "train" not in named:
        raise InputError(
            Problem(
                setting="data.path",
                message=f"{source} has {' and '.join(named) or 'no'} rows only, and none for training",
                fix=(
                    "to train on them name the files: --data.train FILE, or --data.path FILE to split one of"
                    " them"
                ),
            )
        )


def _assemble(
    config: DataConfig, splits: Mapping[str, Source], *, whole: bool, choices: Sequence[str] = ()
) -> Sources:
    """Order the splits, decide the fractions, and say what is judged on what."""
    fractions = fractions_for(config, splits, whole=whole)
    lines = list(choices)
    unsaid = [split for split in fractions if getattr(config, f"{split}_fraction") is None]
    if unsaid:
        shares = " and ".join(f"{fractions[split]:.0%} as {split}" for split in unsaid)
        lines.append(
            f"split: {shares}, by a hash of the text, because {splits['train'].name} is one unsplit source"
        )
    return Sources(
        splits={split: splits[split] for split in SPLITS if split in splits},
        fractions=fractions,
        choices=lines,
    )
