"""What tasks and stages say to each other: types only, so that every other module can import them.

A :class:`Task` holds what differs between causal language modelling, classification, summarization and the rest, and nothing
else. Stages (data, model, evaluation, training ...) know this protocol and never a concrete task.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hftk.config import Problem, RunConfig

    Batch = Mapping[str, torch.Tensor]
    Rows = Any  # datasets.Dataset, or IterableDataset in streams
    Table = dict[str, list[Any]]  # column to values
    Place = tuple[str, int]  # file, and row in it from 1 on

    class Look(Protocol):
        """``look(split, indices)``: rows of a split (all, or some) and the trained model's outputs on them."""

        def __call__(self, split: str, indices: Sequence[int] | None = None) -> tuple[Dataset, dict[str, np.ndarray]]: ...


class Stream(Protocol):
    """Training rows that are read in passes, and that a pass can go on with where another one stood."""

    def batches(
        self, size: int, begin: Mapping[str, Any] | None = None, keys: bytes = b""
    ) -> Iterator[tuple[dict[str, Any], dict[str, list[Any]]]]:
        """(where it begins, columns) of ``size`` rows at a time; ``begin`` and ``keys`` go on with an earlier pass."""

    def keys(self, begin: Mapping[str, Any]) -> bytes:
        """What has to be kept beside ``begin``, which the present pass gave, to go on there."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number about a split, with what is needed to trust and compare it."""

    name: str
    """As the field writes it: perplexity, accuracy, bleu, rougeL."""
    value: float
    unit: str = ""
    """Such as "nats/token", "bits/byte", "%"; "" for a pure number."""
    higher_is_better: bool
    n: int
    """Number of things that were resampled and judged (documents, rows, blocks)."""
    interval: tuple[float, float] | None = None
    """95 % bootstrap interval, or None where it was not asked for or has no meaning."""
    signature: str = ""
    """Everything that a second person needs to get the same number: tokenizer, context, smoothing, version."""
    split: str = ""
    """The split that was judged."""
    when: str = "after"
    """``before`` or ``after`` training, or ``baseline:NAME``."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        text = f"{self.name} {self.value:.4g}" + (f" {self.unit}" if self.unit else "")
        return text + (f" [{self.interval[0]:.4g}, {self.interval[1]:.4g}]" if self.interval else "")


@dataclass(frozen=True, kw_only=True)
class Column:
    """A role that a task needs filled by a column of the data."""

    usual_names: tuple[str, ...]
    """Column names that are recognized without being told, the likeliest first."""
    required: bool = True
    kind: str = "text"
    """``text``, ``label`` or ``any``: cleaning touches text columns only."""
    identity: bool = True
    """Whether the column takes part in what makes two rows the same (inputs do, targets do not)."""
    incomplete: Literal["drop", "error"] = "drop"
    """What becomes of rows without a value, where the user does not say it."""
    nullable: bool = False
    """A missing value means something, such as "no label at all": it stays, as None."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Rows of all splits after a task has looked at them; see :meth:`Task.prepare`."""

    tables: Mapping[str, Table]
    features: Mapping[str, Any] = field(default_factory=dict)
    """Role to a type of ``datasets`` for columns that are no text, such as ClassLabel."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For the record."""
    problems: Sequence[Problem] = ()


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The rows of a run: columns renamed to their roles, cleaned, de-duplicated and proved disjoint."""

    train: Rows
    stream: Stream | None = None
    """What ``train`` is read from where it is a stream, if it can go on where a pass stood; else it is read anew from its beginning."""
    validation: Dataset | None = None
    test: Dataset | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """What was read, changed and dropped, with counts, and the proof of disjointness: goes into the record as ``data``."""

    @property
    def held_out(self) -> tuple[str, Dataset] | None:
        """Name and rows of the split that is judged: test, else validation, else None."""
        if self.test is not None:
            return "test", self.test
        return ("validation", self.validation) if self.validation is not None else None


@dataclass(frozen=True, kw_only=True)
class Features:
    """Encoded rows. One row may give several features (windows over a long document), each keeping its row's index."""

    columns: Mapping[str, Sequence[Any]]
    """Name to one entry per feature, such as ``input_ids`` to a list of integer arrays."""
    rows: np.ndarray
    """(features,) index of the row that each feature comes from, ascending."""
    lengths: np.ndarray
    """(features,) tokens that the feature takes up in a batch before padding."""
    sides: np.ndarray | None = None
    """(features, 2) tokens of source and target where each is padded to the longest of its own in a batch; ``lengths`` is their sum."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Counts: tokens, truncated rows, tokens lost."""
    begin: Mapping[str, Any] | None = None
    """Of rows from a stream: what its ``batches`` takes to begin with them."""

    @property
    def padded(self) -> np.ndarray:
        """What is padded: ``sides`` where there are two, else ``lengths``."""
        return self.lengths if self.sides is None else self.sides

    def of_rows(self, count: int) -> Features:
        """The features of the first ``count`` rows."""
        most = sum(int(row) < count for row in self.rows)
        return Features(
            columns={name: column[:most] for name, column in self.columns.items()}, rows=self.rows[:most],
            lengths=self.lengths[:most], sides=None if self.sides is None else self.sides[:most], facts=self.facts,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index] for name, column in self.columns.items()}


class Task(Protocol):
    """What differs between tasks. Implementations live in ``hftk.tasks``; they share functions, not a base class."""

    name: str
    """As in ``record.json``: causal_lm, classification, summarization, translation."""
    columns: Mapping[str, Column]
    """Role to what may fill it."""
    auto_model: str
    """Name of the transformers auto class, such as ``AutoModelForCausalLM``."""
    architecture: str
    """Model type of a model made on the spot where the user names none, such as ``gpt2``."""
    tokenizer: str
    """Tokenizer trained for a model made on the spot where the user names none: bpe, or wordpiece for encoders."""
    config: RunConfig
    """The settings that the task was made with."""
    frame: str
    """What that tokenizer puts around a text: document, bert or t5; see :func:`hftk.models.tokenizers.train_tokenizer`."""
    fixed: Sequence[str]
    """Settings of the task's own config that act on the loss alone: a continued run must share them."""
    score_names: Sequence[str]
    """Scores by which ``train.metric_for_best_model`` may go, beside loss."""
    judged_by: frozenset[str]
    """Subset of {"loss", "logits", "generation"}: what evaluation has to compute."""
    baselines_read_tokens: bool
    """Whether ``baselines`` needs the features of the rows; else it is given None, and nothing is tokenized for it."""

    @classmethod
    def of_model(cls, config: Any, made: Any) -> Task:
        """The task for judging or using a model that was trained; ``made`` is the model's config."""

    def prepare(
        self, tables: Mapping[str, Table], places: Mapping[str, Sequence[Place]], columns: Mapping[str, str]
    ) -> Prepared:
        """Look through the rows of all splits, once they are read and separated, and convert what is no text.

        ``columns`` is role to column name. Nothing is raised: problems are told together with those of the data stage.
        """

    def sizes(self, architecture: str) -> Mapping[str, Mapping[str, Any]]:
        """Size name to config fields for a model made on the spot; InputError for an unknown architecture."""

    def start(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, splits: Splits, new: Collection[str]
    ) -> None:
        """Set weights that follow from the data before training, such as a bias; ``new`` names those that no checkpoint holds."""

    def texts(self, splits: Splits) -> Iterator[str]:
        """Training texts on which a tokenizer made on the spot is trained."""

    def model_settings(self, splits: Splits) -> dict[str, Any]:
        """Config fields that follow from the data (number of labels, their names)."""

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, *, max_length: int, training: bool) -> Features:
        """Rows to features: for training (targets included, packed where the task packs) or for judging."""

    def encoded_by(self) -> dict[str, Any]:
        """All that ``encode`` goes by besides its arguments, as plain values: what was encoded by the same may be used again."""

    def collator(
        self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, *, training: bool
    ) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        """A function from a list of features to one padded batch, as ``encode`` with the same ``training`` made them."""

    def items(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Term of the loss to the number of trained items in the batch (rows, tokens, spans), a scalar on the batch's device."""

    def loss(self, model: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Term of the loss to (sum over its items, number of items). Trainer divides by the items of the *global* batch."""

    def outputs(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """What judging needs of each feature, first axis = features: sums of losses, logits."""

    def eval_loss(self, outputs: Mapping[str, np.ndarray]) -> float:
        """The loss of a split as a mean over its items, from the collected ``outputs``."""

    def scores(
        self, outputs: Mapping[str, np.ndarray], features: Features, rows: Dataset, tokenizer: PreTrainedTokenizerBase,
        *, resamples: int, seed: int,
    ) -> list[Score]:  # fmt: skip
        """Scores of a split; ``split`` and ``when`` are filled in by the stage."""

    def baselines(
        self, splits: Splits, features: Features | None, rows: Dataset, tokenizer: PreTrainedTokenizerBase,
        *, resamples: int, seed: int,
    ) -> list[Score]:  # fmt: skip
        """What trivial systems, fitted on the training split, score on the same rows; ``when="baseline:NAME"``."""

    def finish(self, model: PreTrainedModel, splits: Splits, look: Look) -> list[dict[str, Any]]:
        """After training, before the model is saved: choices made on the validation split, which may go into the model or its
        config, and findings about the training split. Sections for the report; all processes call this."""

    def predictions(
        self, outputs: Mapping[str, np.ndarray], features: Features, rows: Dataset, model: PreTrainedModel
    ) -> list[dict[str, Any]]:
        """One dictionary per row in data order, for ``predictions.jsonl``; ``index`` is among its keys."""

    def analysis(
        self, outputs: Mapping[str, np.ndarray], features: Features, rows: Dataset, *, resamples: int, seed: int
    ) -> list[dict[str, Any]]:
        """Sections for the report on a judged split, as :attr:`hftk.reports.record.RunRecord.analysis` describes them."""

    def show(self, rows: Dataset, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """A few samples a person wants to see, as plain dictionaries; the model continues those that have a ``prompt``."""
