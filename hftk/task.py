"""The interface of tasks and stages: a base class and types, which every other module can import.

A :class:`Task` holds what differs between tasks, and nothing else. Stages (data, model, evaluation, training
...) know this base class and never a concrete task.
"""

from __future__ import annotations

import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from typing import Self

    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hftk.config import GenerationSettings, Problem

    Batch = Mapping[str, torch.Tensor]
    Rows = Any  # datasets.Dataset, or IterableDataset in streams
    Table = dict[str, list[Any]]  # column to values
    Place = tuple[str, int]  # file, and row in it from 1 on

    class PredictRows(Protocol):
        """``predict_rows(split, indices)``: rows of a split (all, or some) and the trained model's outputs on
        them."""

        def __call__(
            self, split: str, indices: Sequence[int] | None = None
        ) -> tuple[Dataset, dict[str, np.ndarray]]: ...


class Stream(Protocol):
    """Training rows that are read in passes, and that a pass can go on with where another one stood."""

    def batches(
        self, size: int, begin: Mapping[str, Any] | None = None, keys: bytes = b""
    ) -> Iterator[tuple[dict[str, Any], dict[str, list[Any]]]]:
        """(where it begins, columns) of ``size`` rows at a time; ``begin`` and ``keys`` go on with an earlier
        pass."""

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
    """Everything that a second person needs to get the same number: tokenizer, context, smoothing,
    version."""
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
    """What ``train`` is read from where it is a stream, if it can go on where a pass stood; else it is read
    anew from its beginning."""
    validation: Dataset | None = None
    test: Dataset | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """What was read, changed and dropped, with counts, and the proof of disjointness: goes into the record as
    ``data``."""

    @property
    def held_out(self) -> tuple[str, Dataset] | None:
        """Name and rows of the split that is judged: test, else validation, else None."""
        if self.test is not None:
            return "test", self.test
        return ("validation", self.validation) if self.validation is not None else None


@dataclass(frozen=True, kw_only=True)
class Features:
    """Encoded rows. One row may give several features (windows over a long document), each keeping its row's
    index."""

    columns: Mapping[str, Sequence[Any]]
    """Name to one entry per feature, such as ``input_ids`` to a list of integer arrays."""
    rows: np.ndarray
    """(features,) index of the row that each feature comes from, ascending."""
    lengths: np.ndarray
    """(features,) tokens that the feature takes up in a batch before padding."""
    sides: np.ndarray | None = None
    """(features, 2) tokens of source and target where each is padded to the longest of its own in a batch;
    ``lengths`` is their sum."""
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
            columns={name: column[:most] for name, column in self.columns.items()},
            rows=self.rows[:most],
            lengths=self.lengths[:most],
            sides=None if self.sides is None else self.sides[:most],
            facts=self.facts,
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index] for name, column in self.columns.items()}


IGNORED = -100
"""Label of a position that is not trained and not counted (torch's and transformers' convention)."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The model's outputs on a split, with what scores, predictions and analyses need beside them."""

    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Name to one entry per feature, as :meth:`Task.outputs` gives them; ``generated``: (rows,) texts."""
    features: Features
    rows: Dataset
    tokenizer: PreTrainedTokenizerBase
    model_config: Any = None
    """The model's config."""
    resamples: int = 0
    """Bootstrap resamples; 0: no intervals."""
    seed: int = 0

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    @property
    def bootstrap(self) -> dict[str, Any]:
        """``resamples`` and ``seed``, as metrics take them."""
        return {"resamples": self.resamples, "seed": self.seed}


class Task(ABC):
    """What differs between tasks; implementations live in ``hftk.tasks``.

    A task says at least ``name``, ``columns``, ``auto_model``, and how it encodes rows, computes its loss,
    and scores outputs.
    """

    name: str
    """As in ``record.json``, such as classification."""
    columns: Mapping[str, Column]
    """Role to what may fill it. The first one with a text is what ``hftk predict`` reads."""
    auto_model: str
    """Name of the transformers auto class, such as ``AutoModelForCausalLM``."""
    config: Any
    """The settings that the task was made with: a :class:`hftk.config.RunConfig`."""
    title: str = ""
    """The task in words, such as "Text classification", for reports and cards."""
    pipeline_tag: str = ""
    """The task's name on the Hub, such as text-classification."""
    architecture: str = "bert"
    """Model type that is trained from scratch where the user names no model."""
    tokenizer_kind: str = "wordpiece"
    """Tokenizer that is trained where the user names no model: bpe, or wordpiece for encoders."""
    token_frame: str = "bert"
    """Special tokens of that tokenizer: document, bert or t5; see
    :func:`hftk.models.tokenizers.train_tokenizer`."""
    resume_settings: Sequence[str] = ()
    """Settings of the task's own config that only change the loss: they must not change on resume."""
    score_names: Sequence[str] = ()
    """Scores that ``train.metric_for_best_model`` may name, in addition to loss."""
    judged_by: frozenset[str] = frozenset({"logits"})
    """Subset of {"loss", "logits", "generation"}: what evaluation has to compute."""
    baselines_read_tokens: bool = False
    """Whether ``baselines`` needs the features of the rows; else nothing is tokenized for it."""
    new_head: bool = False
    """Whether the head is initialized again where the checkpoint's has another number of outputs."""
    generates: bool = False
    """Whether ``hftk predict`` generates text from prompts; else it gives a prediction per row."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def from_model_config(cls, config: Any, model_config: Any) -> Self:
        """The task for evaluating or using a trained model with the config ``model_config``."""
        return cls(config)

    def with_config(self, config: Any = None, **sections: Any) -> Self:
        """This task with another config, or other sections of its own, such as
        ``eval=EvalConfig(stride=512)``.

        A stage goes by the settings that it is given, and not by those that its task was made with.
        """
        config = replace(self.config if config is None else config, **sections)
        if config == self.config:
            return self
        made = copy.copy(self)
        for name in [
            n for n in vars(made) if isinstance(getattr(type(made), n, None), functools.cached_property)
        ]:
            del vars(made)[name]  # it may follow from the settings
        made.config = config
        return made

    # --- Data

    def prepare(
        self, tables: Mapping[str, Table], places: Mapping[str, Sequence[Place]], columns: Mapping[str, str]
    ) -> Prepared:
        """Check the rows of all splits and convert columns that are not text; default: rows stay as they are.

        ``columns`` is role to column name. Nothing is raised: problems are reported together with those of
        the data stage.
        """
        return Prepared(tables=tables)

    @property
    def inputs(self) -> list[str]:
        """Roles of the texts that the model reads, in the order of ``columns``."""
        return [role for role, column in self.columns.items() if column.identity and column.kind == "text"]

    def tokenizer_texts(self, splits: Splits) -> Iterator[str]:
        """Texts that a new tokenizer is trained on; default: all text columns of the training split."""
        for role, column in self.columns.items():
            if column.kind == "text" and role in splits.train.column_names:
                yield from splits.train[role]

    # --- Model

    def model_settings(self, splits: Splits) -> dict[str, Any]:
        """Fields of the model's config that follow from the data, such as the names of labels."""
        return {}

    def initialize(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, splits: Splits, new: Collection[str]
    ) -> None:
        """Initialize weights that follow from the data, such as a bias; ``new`` names those that no
        checkpoint holds."""
        return None

    # --- Encoding

    @abstractmethod
    def encode(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, *, max_length: int, training: bool
    ) -> Features:
        """Rows to features: for training (targets included, packed where the task packs) or for
        evaluation."""

    def encoded_by(self) -> dict[str, Any]:
        """Settings that ``encode`` depends on; default: all of the task's own, ``train.max_length`` and
        ``eval.stride``."""
        from hftk.config import RunConfig

        shared = {f.name for f in fields(RunConfig)}
        own = {f.name: getattr(self.config, f.name) for f in fields(self.config) if f.name not in shared}
        return {**own, "max_length": self.config.train.max_length, "stride": self.config.eval.stride}

    def collator(
        self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, *, training: bool
    ) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        """A function from a list of features to one batch, padded on the right: ids by the tokenizer's
        padding token, labels by :data:`IGNORED`, everything else by 0."""
        fillers = {"input_ids": tokenizer.pad_token_id or 0, "labels": IGNORED}
        return lambda features: _pad(features, fillers)

    def example_batch(
        self, rows: int, length: int, target_length: int = 0, *, training: bool = True
    ) -> dict[str, torch.Tensor]:
        """A batch of ``rows`` full rows of ``length`` tokens, as the collator makes them, for planning;
        default: one label per row."""
        import torch

        ids = torch.ones(rows, length, dtype=torch.long)
        return {
            "input_ids": ids,
            "attention_mask": ids.clone(),
            "labels": torch.zeros(rows, dtype=torch.long),
        }

    # --- Loss and outputs

    def items(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Term of the loss to the number of trained items in the batch, a scalar on the batch's device;
        default: ``items``, the labels that are not :data:`IGNORED`."""
        return {"items": (batch["labels"] != IGNORED).sum()}

    @abstractmethod
    def loss(self, model: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Term of the loss to (sum over its items, number of items). Trainer divides by the items of the
        *global* batch."""

    @abstractmethod
    def outputs(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """What evaluation needs of each feature, first axis = features: ``loss`` (a sum), perhaps ``items``,
        logits."""

    def eval_loss(self, outputs: Mapping[str, np.ndarray]) -> float:
        """The loss of a split as a mean over its items; default: sum of ``loss`` / sum of ``items`` (1 for
        each feature)."""
        loss = outputs["loss"].astype("float64")
        return float(loss.sum() / (outputs["items"].sum() if "items" in outputs else len(loss)))

    # --- Evaluation

    @abstractmethod
    def scores(self, outputs: Outputs) -> list[Score]:
        """Scores of a split, the main one first; ``split`` and ``when`` are filled in by the stage."""

    def baselines(self, splits: Splits, given: Outputs) -> list[Score]:
        """Scores of trivial systems, fitted on the training split, on the rows of ``given``;
        ``when="baseline:NAME"``.

        ``given`` has no arrays, and no features unless ``baselines_read_tokens``.
        """
        return []

    def after_training(
        self, model: PreTrainedModel, splits: Splits, predict_rows: PredictRows
    ) -> list[dict[str, Any]]:
        """Choices made on the validation split before the model is saved, which may change the model or its
        config, and findings about the training split: sections for the report. All processes call this."""
        return []

    def predictions(self, outputs: Outputs) -> list[dict[str, Any]]:
        """One dictionary per row in data order, for ``predictions.jsonl``; default: ``index``, every number
        per row, and as ``reference`` the first column that is no input."""
        lines: list[dict[str, Any]] = [{"index": i} for i in range(len(outputs.rows))]
        for name, values in outputs.arrays.items():
            if values.ndim == 1 and len(values) == len(lines):
                for line, value in zip(lines, values.tolist(), strict=True):
                    line[name] = value
        target = next(
            (r for r, c in self.columns.items() if not c.identity and r in outputs.rows.column_names), None
        )
        for line, value in zip(lines, outputs.rows[target] if target else (), strict=bool(target)):
            line["reference"] = value
        return lines

    def analysis(self, outputs: Outputs) -> list[dict[str, Any]]:
        """Sections for the report on an evaluated split, as :attr:`hftk.reports.record.RunRecord.analysis`
        describes them."""
        return []

    def samples(self, outputs: Outputs) -> list[dict[str, Any]]:
        """A few rows with their predictions for the report; the model continues those that have a
        ``prompt``."""
        return []

    @classmethod
    def compare(
        cls,
        lines: tuple[list[dict[str, Any]], list[dict[str, Any]]],
        names: tuple[str, str],
        config: Mapping[str, Any],
        *,
        resamples: int,
        seed: int,
    ) -> tuple[list[Any], list[str]] | None:
        """Paired tests (:class:`hftk.metrics.comparison.Comparison`) of two runs' predictions on the same
        rows, and further findings in sentences; ``config`` is that of the first run. Default: None, by the
        kind of the predictions."""
        return None

    # --- Generation

    def prompts(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_length: int, new: int
    ) -> tuple[list[str], np.ndarray]:
        """The prompt of each text, with ``new`` tokens to come in a context of ``max_length``; and (texts,)
        how many tokens were cut off for that. Default: the texts."""
        import numpy as np

        return list(texts), np.zeros(len(texts), np.int64)

    def generation(self, model: PreTrainedModel) -> GenerationSettings:
        """Settings of generation for evaluation."""
        settings: GenerationSettings = self.config.generation
        return settings


def _pad(features: list[dict[str, Any]], fillers: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Columns of features as tensors, sequences padded on the right; ``attention_mask`` where there are
    ``input_ids``."""
    import numpy as np
    import torch

    columns = {name: [np.asarray(feature[name]) for feature in features] for name in features[0]}
    if "input_ids" in columns and "attention_mask" not in columns:
        columns["attention_mask"] = [np.ones(len(ids), np.int64) for ids in columns["input_ids"]]
    batch = {}
    for name, values in columns.items():
        if values[0].ndim:
            width = max(map(len, values))
            values = [np.pad(v, (0, width - len(v)), constant_values=fillers.get(name, 0)) for v in values]
        array = np.stack(values)
        batch[name] = torch.from_numpy(
            array.astype(np.int64) if array.dtype.kind in "iu" else array.astype(np.float32)
        )
    return batch
