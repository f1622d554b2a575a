"""Where the rows come from: ``data.*``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from hftk.config.problems import Problem


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the rows come from, what their columns are called, and how they are split."""

    path: str | None = None
    """A file, folder, glob or Hub id. A folder or glob whose file names say train, validation or test is
    split accordingly; anything else is split by the fractions below."""
    train: str | None = None
    """File, folder or glob with the training rows; instead of --data.path."""
    validation: str | None = None
    """File, folder or glob with the validation rows (early stopping and choices are made on them)."""
    test: str | None = None
    """File, folder or glob with the test rows (judged once, at the end)."""
    sample: str | None = None
    """Name of a sample data set made from what is installed, with no download: python_docs, python_modules,
    docstring_summaries, cldr_en_de, cldr_en_zh."""
    columns: dict[str, str] = field(default_factory=dict)
    """Role to column name, such as --data.columns.text body. Roles that are not named are looked up under
    their usual names."""
    subset: str | None = None
    """Subset (configuration name) of a Hub data set."""
    format: Literal["auto", "txt", "jsonl", "json", "csv", "tsv", "parquet"] = "auto"
    """File format; auto goes by the file's ending, also below .gz, .bz2, .xz and .zst."""
    encoding: str = "utf-8"
    """Text encoding of the files, such as utf-8 (with or without BOM), gb18030, latin-1."""
    documents: Literal["auto", "file", "paragraph", "line"] = "auto"
    """What one document of a .txt file is: the file, a paragraph (blank lines between), or a line. auto: the
    file where the splits are given as files or there are at least 20 files, else a paragraph."""
    streaming: bool = False
    """Read the training rows as a stream, for sets larger than memory; needs --train.max_steps."""
    validation_fraction: float | None = None
    """Share of the rows for validation, from 0 to 0.5, chosen by a hash of the text. Default: 0.05 where
    --data.path gives one unsplit source, else 0."""
    test_fraction: float | None = None
    """Share of the rows for test, from 0 to 0.5, chosen by a hash of the text. Default: as for
    validation_fraction."""
    seed: int = 0
    """Seed of the split by fractions."""
    max_rows: int | None = None
    """Take at most this many rows of each split (the first ones), for a quick try."""
    unicode: Literal["none", "NFC", "NFKC"] = "NFC"
    """Unicode normalization of every text; altered rows are counted."""
    incomplete: Literal["auto", "drop", "error"] = "auto"
    """What becomes of rows without a text or a label: drop (counted), or error: stop and say which they are.
    auto: drop in language modelling, error where each row has a label."""
    cache: str = "auto"
    """Folder where the tokens of large sets (from 8 MB of rows on) are kept, for all processes and for later
    runs on the same rows. auto: hftk/features in HF_HOME; none: nowhere."""
    deduplicate: bool = True
    """Drop rows of the training split that repeat an earlier one. Training rows that stand in validation or
    test are always dropped."""

    def problems(self) -> Iterator[Problem]:
        for name in ("validation_fraction", "test_fraction"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 0.5:
                yield Problem(
                    setting=f"data.{name}", message=f"expected a share from 0 to 0.5, found {value}"
                )
        if self.max_rows is not None and self.max_rows < 1:
            yield Problem(setting="data.max_rows", message=f"expected at least 1, found {self.max_rows}")
        if self.streaming and self.incomplete == "error":
            yield Problem(
                setting="data.incomplete",
                message="a stream is read while it trains: it cannot be looked through before",
                fix="use --data.incomplete drop",
            )
        for split in ("validation", "test"):
            if getattr(self, split) is not None and getattr(self, f"{split}_fraction"):
                yield Problem(
                    setting=f"data.{split}_fraction",
                    message=f"the {split} rows are given twice: by --data.{split} and by a fraction",
                    fix=f"leave out one of --data.{split} and --data.{split}_fraction",
                )
        if (self.validation or self.test) and not self.train:
            yield Problem(
                setting="data.train",
                message="--data.validation or --data.test is given without the training rows",
                fix="add --data.train FILE (or use --data.path alone for one source)",
            )
