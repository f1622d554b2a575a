"""Text classification: one label, several labels, or a number for a text or a pair of texts (BERT and its like).

Needs     a column of text, a column of labels, and a second column of text for sentence pairs.
When      to sort texts into classes (topic, sentiment, intent, spam), to tag them with several, to grade or compare them.
Siblings  ner for labels of tokens; causal_lm for text without labels.

| input          | shape                     | meaning                                                              |
|----------------|---------------------------|----------------------------------------------------------------------|
| input_ids      | (batch, tokens)           | the text, or both texts of a pair, with the model's special tokens   |
| attention_mask | (batch, tokens)           | 1, and 0 for padding                                                 |
| token_type_ids | (batch, tokens)           | 0 for the first text, 1 for the second, for models that take it      |
| labels         | (batch,) int              | class number (one label per row)                                     |
|                | (batch, labels) float     | 1 for each label that the row has (several labels per row)           |
|                | (batch,) float            | the number (regression)                                              |
| weights        | as labels                 | weight of each decision, with ``class_weights``                      |

    accelerate launch recipes/bert_classification.py --data.path reviews.csv --model.name google-bert/bert-base-uncased
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hftk.config import Problem, RunConfig
from hftk.console import note
from hftk.launch import on_main
from hftk.models import heads
from hftk.task import Column, Features, Outputs, Prepared, Score, Splits, Task
from hftk.tasks import class_predictions
from hftk.tasks.encoder_inputs import Truncation, encode_texts, fixed_width, pad, places_of, takes
from hftk.tasks.labels import MULTI, REGRESSION, LabelColumn, Labels, find_labels, labels_of, to_targets

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hftk.task import Batch, Place, PredictRows, Rows, Table
    from hftk.tasks.significance import BaselineAnswers

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(RunConfig):
    """Settings of text classification."""

    problem_type: Literal[
        "auto", "single_label_classification", "multi_label_classification", "regression"
    ] = "auto"
    """What a row's label is: one class, a list of classes, or a number. auto: told from the training
    labels."""
    label_separator: str | None = None
    """What stands between the labels of a row where they are one text, such as "," for "joy,love"."""
    truncation: Truncation = "head"
    """What is kept of a text that is longer than --train.max_length: its head, its tail, head+tail (a quarter
    and three quarters), or error: stop and say which rows."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a class weighs in the loss by rows / (classes x its rows), as in scikit-learn; with several
    labels per row, a label's presence weighs by absences / presences."""
    focal_gamma: float = 0.0
    """Exponent of the focal loss, which turns away from rows that are already right; 0: plain
    cross-entropy."""
    temperature_scaling: bool = False
    """Calibrate the probabilities on the validation split after training; the temperature is worked into the
    last layer."""
    tune_thresholds: bool = True
    """With several labels per row: choose each label's threshold on the validation split; else 0.5."""
    suspicious_labels: int = 20
    """List this many training rows whose label is probably wrong; 0: do not look for any."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        for name in ("focal_gamma", "suspicious_labels"):
            if getattr(self, name) < 0:
                yield Problem(setting=name, message=f"expected 0 or more, found {getattr(self, name)}")
        if self.label_separator == "":
            yield Problem(setting="label_separator", message="expected at least one character, found none")
        if self.data.streaming:
            yield Problem(
                setting="data.streaming",
                message="all labels must be known before the first step, and a stream does not tell them",
                fix="leave it out, or take a part by --data.max_rows",
            )
        if self.focal_gamma and self.train.label_smoothing:
            yield Problem(
                setting="focal_gamma",
                message="cannot be combined with --train.label_smoothing",
                fix="leave out one of them",
            )
        if self.problem_type == REGRESSION:
            yield from self.not_for_regression()

    def not_for_regression(self) -> Iterator[Problem]:
        """Settings that act on classes."""
        acting = {
            "train.label_smoothing": self.train.label_smoothing > 0,
            "class_weights": self.class_weights != "none",
            "focal_gamma": self.focal_gamma > 0,
            "temperature_scaling": self.temperature_scaling,
        }
        for name, acts in acting.items():
            if acts:
                yield Problem(
                    setting=name,
                    message="acts on classes, and the labels are numbers (regression)",
                    fix="leave it out",
                )


class Classification(Task):
    """The task object for one config; see the module's docstring."""

    name = "classification"
    columns: Mapping[str, Column] = {
        "text": Column(
            usual_names=(
                "text",
                "sentence",
                "sentence1",
                "premise",
                "question1",
                "review",
                "content",
                "comment",
                "message",
                "tweet",
                "body",
                "document",
                "title",
            ),
            incomplete="error",
        ),
        "text_pair": Column(
            usual_names=("text_pair", "sentence2", "hypothesis", "question2"),
            required=False,
            incomplete="error",
        ),
        "label": Column(
            usual_names=(
                "label",
                "labels",
                "class",
                "category",
                "target",
                "sentiment",
                "intent",
                "topic",
                "emotion",
                "score",
                "stars",
                "rating",
            ),
            kind="label",
            identity=False,
            incomplete="error",
        ),
    }
    auto_model = "AutoModelForSequenceClassification"
    title = "Text classification"
    pipeline_tag = "text-classification"
    resume_settings = ("focal_gamma",)
    score_names = tuple(dict.fromkeys(name for names in class_predictions.SCORES.values() for name in names))
    new_head = True
    config: ClassificationConfig

    def __init__(self, config: ClassificationConfig, labels: Labels | None = None) -> None:
        """``labels``: those of a model that is there already; else they are found in the training rows."""
        self.config, self.labels = config, labels
        self._baselines: list[BaselineAnswers] = []  # shared with the copies that with_config makes
        self._places: dict[tuple[str, str], Place] = {}  # filled where an error over long texts may name them
        if config.label_separator is not None:  # an empty cell is a row without any label
            label = replace(self.columns["label"], nullable=True)
            self.columns = {**self.columns, "label": label}

    @classmethod
    def from_model_config(
        cls, config: ClassificationConfig, model_config: PretrainedConfig
    ) -> Classification:
        """The task for evaluating or using a trained model: with the model's labels."""
        return cls(config, labels_of(model_config))

    # --- Labels

    def prepare(
        self, tables: Mapping[str, Table], places: Mapping[str, Sequence[Place]], columns: Mapping[str, str]
    ) -> Prepared:
        """Labels to class numbers, and everything that is wrong with them; see :mod:`hftk.tasks.labels`."""
        if self.config.truncation == "error":
            self._places = places_of(tables, places)
        given = {
            split: LabelColumn(table["label"], places[split])
            for split, table in tables.items()
            if "label" in table
        }
        if not given:
            return Prepared(tables=tables)
        config, known = self.config, self.labels
        labels, problems = find_labels(
            given,
            asked=config.problem_type,
            separator=config.label_separator,
            column=columns["label"],
            known=known,
        )
        if labels is None or problems:
            return Prepared(tables=tables, problems=problems)
        problems = list(self._unfit_settings(labels))
        if config.temperature_scaling and "train" in tables and "validation" not in tables:
            message = "the temperature is fitted on a validation split, and there is none"
            problems.append(
                Problem(
                    setting="temperature_scaling",
                    message=message,
                    fix="add --data.validation FILE, or --data.validation_fraction 0.05",
                )
            )
        note(f"problem_type: {labels.problem_type}: {labels.reason}")
        if "text_pair" in columns:
            note(f"pairs of texts: {columns['text']} and {columns['text_pair']}")
        targets = {
            split: to_targets(column.values, labels, config.label_separator)
            for split, column in given.items()
        }
        facts = {
            "problem_type": labels.problem_type,
            "reason": labels.reason,
        } | class_predictions.label_counts(targets, labels)
        made = {split: {**table, "label": targets[split]} for split, table in tables.items()}
        return Prepared(
            tables=made,
            features={"label": class_predictions.feature_of(labels)},
            facts={"labels": facts},
            problems=problems,
        )

    def _unfit_settings(self, labels: Labels) -> Iterator[Problem]:
        if labels.problem_type == REGRESSION:
            yield from self.config.not_for_regression()
        metric, names = self.config.train.metric_for_best_model, class_predictions.SCORES[labels.problem_type]
        if metric not in ("loss", *names):
            message = f"{metric} is no score of {labels.problem_type}"
            yield Problem(
                setting="train.metric_for_best_model", message=message, fix=f"choose loss, {', '.join(names)}"
            )

    def model_settings(self, splits: Splits) -> dict[str, Any]:
        labels = class_predictions.labels_in(splits.train)
        names = labels.names or ("LABEL_0",)
        seen = class_predictions.classes_of(splits.train, labels)
        if seen < len(
            labels.names
        ):  # all of them were found in the training rows, so some are beyond max_rows
            note(
                f"the training rows that --data.max_rows leaves hold {seen} of the {len(names)} classes: the"
                " model cannot learn the others"
            )
        return {
            "problem_type": labels.problem_type,
            "id2label": dict(enumerate(names)),
            "label2id": {name: i for i, name in enumerate(names)},
            **(
                {"thresholds": None} if labels.problem_type == MULTI else {}
            ),  # those of an earlier run were for its labels
        }

    def initialize(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, splits: Splits, new: Collection[str]
    ) -> None:
        """A new head for regression begins with the mean and the spread of the training labels: from prices
        or years of 2,000 on, small steps would never get there. One for several labels begins with how
        frequent each label is."""
        labels = class_predictions.labels_in(splits.train)
        if labels.problem_type == MULTI and heads.is_new(model, new):
            heads.start_at_frequencies(model, class_predictions.truth(splits.train, labels).mean(0).tolist())
        if labels.problem_type == REGRESSION and heads.is_new(model, new):
            numbers = np.array(list(splits.train["label"]), np.float64)
            heads.start_around(model, float(numbers.mean()), float(numbers.std()) or 1.0)

    # --- Encoding

    def encode(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, *, max_length: int, training: bool
    ) -> Features:
        """One feature per row, cut to ``max_length`` and to ``train.max_length``, for training and for
        judging alike."""
        max_length = min(max_length, self.config.train.max_length or max_length)
        pairs = list(rows["text_pair"]) if "text_pair" in rows.column_names else None
        columns: dict[str, Sequence[Any]]
        columns, facts = encode_texts(  # type: ignore[assignment]
            list(rows["text"]),
            pairs,
            tokenizer,
            max_length=max_length,
            truncation=self.config.truncation,
            places=self._places,
        )
        if facts["truncated_rows"]:
            note(
                f"{facts['truncated_rows']:,} of {len(rows):,} rows are longer than {max_length} "
                f"tokens: {facts['tokens_lost']:,} tokens are cut off (truncation: {self.config.truncation})"
            )
        if "label" in rows.column_names:
            labels = class_predictions.labels_in(rows)
            columns["labels"] = list(class_predictions.truth(rows, labels))
            if training and self.config.class_weights == "balanced":
                columns["weights"] = list(
                    class_predictions.balanced_weights(class_predictions.truth(rows, labels), labels)
                )
        lengths = np.array([len(ids) for ids in columns["input_ids"]], np.int64)
        return Features(columns=columns, rows=np.arange(len(lengths)), lengths=lengths, facts=facts)

    def encoded_by(self) -> dict[str, Any]:
        config = self.config
        return {
            "max_length": config.train.max_length,
            "truncation": config.truncation,
            "class_weights": config.class_weights,
        }

    def collator(
        self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, *, training: bool
    ) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        """Pads on the right; a decoder (GPT-2, Llama) needs the padding's id in its config to find the last
        token.

        A model that takes no mask (FNet) sees padding as text: every row is padded to the same length, the
        longest that is read, as FNet was trained (Lee-Thorp et al. 2021, arXiv:2105.03824). So no row's
        logits depend on its company in a batch.
        """
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        if getattr(model.config, "pad_token_id", None) is None:
            model.config.pad_token_id = pad_id
        # RoBERTa weights with BERT's tokenizer, such as klue/roberta-base: type 1 of a second text has no
        # embedding.
        unread = (
            set()
            if takes(model, "token_type_ids") and getattr(model.config, "type_vocab_size", None) != 1
            else {"token_type_ids"}
        )
        width = None if takes(model, "attention_mask") else fixed_width(model, self.config.train.max_length)
        unread |= {"attention_mask"} if width else set()

        def collate(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            import torch

            # XLNet classifies by the last position, which must not be padding.
            batch = pad(
                features, pad_id, left=getattr(model.config, "model_type", "") == "xlnet", width=width
            )
            batch = {name: values for name, values in batch.items() if name not in unread}
            for name in ("labels", "weights"):
                if name in features[0]:
                    batch[name] = torch.from_numpy(np.stack([feature[name] for feature in features]))
            return batch

        return collate

    # --- Loss

    def items(self, batch: Batch) -> dict[str, torch.Tensor]:
        """An item is a decision: a row, or with several labels per row each label of each row. With class
        weights a row counts by its weight, as in torch's ``cross_entropy``; a label of several counts once,
        as in ``BCEWithLogitsLoss``."""
        labels = batch["labels"]
        if "weights" in batch and not labels.is_floating_point():
            return {"decisions": batch["weights"].sum()}
        return {"decisions": labels.new_tensor(labels.numel())}

    def loss(self, model: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Cross-entropy in nats (squared error for regression), weighted, summed over the decisions."""
        losses = class_predictions.losses(
            self._logits(model, batch),
            batch["labels"],
            label_smoothing=self.config.train.label_smoothing,
            focal_gamma=self.config.focal_gamma,
        )
        if "weights" in batch:
            losses = losses * batch["weights"]
        return {"decisions": (losses.sum(), self.items(batch)["decisions"])}

    def outputs(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """``logits``: (batch, outputs) float32; ``loss``: (batch,) nats (squared error) of each row, plain,
        where there are labels; ``chosen``: (batch, labels) whether a label of several is predicted."""
        logits = self._logits(model, batch)
        found = {"logits": logits}
        if "labels" in batch:
            losses = class_predictions.losses(logits, batch["labels"])
            found["loss"] = losses if losses.ndim == 1 else losses.mean(1)
        if model.config.problem_type == MULTI:
            found["chosen"] = logits.sigmoid() >= class_predictions.thresholds(model.config, logits)
        return found

    def _logits(self, model: Any, batch: Batch) -> torch.Tensor:
        """(batch, outputs) in float32."""
        logits: torch.Tensor = model(
            **{name: batch[name] for name in _INPUTS if name in batch}
        ).logits.float()
        return logits

    # --- Judging

    def scores(self, outputs: Outputs) -> list[Score]:
        return class_predictions.scores(
            class_predictions.answers(outputs.arrays), outputs.rows, **outputs.bootstrap
        )

    def baselines(self, splits: Splits, given: Outputs) -> list[Score]:
        """The majority class (the mean, for regression), and TF-IDF with logistic (ridge) regression. What
        they answer is kept, so that :meth:`analysis` can test the model against them on the same rows."""
        from hftk.tasks.significance import BaselineAnswers
        from hftk.tasks.tfidf import Majority, TfIdf, fit_tfidf

        tfidf = fit_tfidf(splits, tune_thresholds=self.config.tune_thresholds)
        systems: dict[str, Majority | TfIdf] = {"majority": Majority(splits.train), "tfidf": tfidf}
        rivals = BaselineAnswers(
            given.rows, {name: system.answer(given.rows) for name, system in systems.items()}
        )
        self._baselines[:] = [rivals]
        return [
            replace(score, when=f"baseline:{name}")
            for name, found in rivals.answers.items()
            for score in class_predictions.scores(found, given.rows, **given.bootstrap)
        ]

    def after_training(
        self, model: PreTrainedModel, splits: Splits, predict_rows: PredictRows
    ) -> list[dict[str, Any]]:
        """Thresholds and temperature by the validation split, written into the model; suspicious labels in
        the training split."""
        from hftk.tasks import calibration, label_errors

        sections = []
        if splits.validation is not None:
            sections += calibration.tune(
                model,
                splits,
                predict_rows,
                temperature_scaling=self.config.temperature_scaling,
                tune_thresholds=self.config.tune_thresholds,
            )
        if self.config.suspicious_labels:
            tuned = getattr(model.config, "thresholds", None)
            sections += label_errors.find_label_errors(
                splits, predict_rows, most=self.config.suspicious_labels, thresholds=tuned
            )
        return sections + label_errors.find_conflicts(splits)

    def predictions(self, outputs: Outputs) -> list[dict[str, Any]]:
        """``prediction`` (a label, a list of labels, a number), ``reference`` where it is known,
        ``probabilities``."""
        labels = self.labels or labels_of(outputs.model_config)
        return class_predictions.predictions(class_predictions.answers(outputs.arrays), outputs.rows, labels)

    def analysis(self, outputs: Outputs) -> list[dict[str, Any]]:
        """The model against its baselines; confusion matrix, scores by class, calibration, the most confident
        mistakes; or a scatter plot."""
        from hftk.tasks.error_analysis import analyze
        from hftk.tasks.significance import compare_with_baselines

        found = class_predictions.answers(outputs.arrays)
        rivals = (
            self._baselines[0] if self._baselines else None
        )  # of the main process, where the baselines ran
        tests = on_main(lambda: compare_with_baselines(found, rivals, outputs.rows, **outputs.bootstrap))
        return tests + analyze(found, outputs.rows, **outputs.bootstrap)

    def samples(self, outputs: Outputs) -> list[dict[str, Any]]:
        """The first rows with what the model answers."""
        rows = outputs.rows
        answers = class_predictions.answers({name: values[:5] for name, values in outputs.arrays.items()})
        some = rows.select(range(min(5, len(rows))))
        texts = [
            {role: some[i][role][:500] for role in ("text", "text_pair") if role in some.column_names}
            for i in range(len(some))
        ]
        said = class_predictions.predictions(answers, some, class_predictions.labels_in(some))
        return [
            {
                **text,
                **{
                    key: value
                    for key, value in line.items()
                    if key in ("prediction", "reference", "probability")
                },
            }
            for text, line in zip(texts, said, strict=True)
        ]
