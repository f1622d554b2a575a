"""What summarization and translation share: pairs of texts as features, the exact loss, and outputs that are
generated.

How a model reads and learns pairs depends on its kind: :mod:`hftk.tasks.encoder_decoder_inputs` and
:mod:`hftk.tasks.prompts`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from hftk.config import GenerationSettings, InputError, Problem, RunConfig
from hftk.console import note
from hftk.models.architectures import kind_of
from hftk.models.hub_names import read_config
from hftk.task import IGNORED, Column, Features, Outputs, Prepared, Score, Splits, Task
from hftk.tasks.encoder_decoder_inputs import EncoderDecoder
from hftk.tasks.prompts import SOURCE, PromptedDecoder

if TYPE_CHECKING:
    from typing import Self

    import torch
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hftk.task import Batch, Place, Rows, Table

MARGIN = 1.25
"""An output may be this much longer than the longest training target."""
TARGETS_LOOKED_AT = 20_000
REFERENCES = Column(usual_names=("references",), required=False, kind="any", identity=False, nullable=True)
"""Several right texts for one source, as a list: scores go by them, training by the target."""


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig(RunConfig):
    """Settings of tasks that turn one text into another."""

    source_prefix: str = ""
    """Text before every source, such as "summarize: " for T5."""
    max_target_length: int | None = None
    """Most tokens of a target; a longer one is refused and never cut. Default: as many as of a source; for
    decoder-only models a quarter of --train.max_length."""
    prompt_template: str | None = None
    """What decoder-only models (GPT-2, Llama) read, with {source} in it; for chat models what the user says.
    Default: the task's own, which is printed."""
    chat: bool = True
    """Put the prompt of a decoder-only model into its tokenizer's chat template, where it has one."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.max_target_length is not None and self.max_target_length < 1:
            yield Problem(
                setting="max_target_length", message=f"expected at least 1, found {self.max_target_length}"
            )
        if self.data.streaming:
            yield Problem(
                setting="data.streaming",
                message="the lengths of the targets must be known before training",
                fix="leave it out",
            )
        if self.prompt_template is not None and self.prompt_template.count(SOURCE) != 1:
            message = f"expected {SOURCE} once, where the source goes, found {self.prompt_template!r}"
            yield Problem(
                setting="prompt_template",
                message=message,
                fix="such as --prompt_template 'Text: {source} Summary: '",
            )


class Seq2Seq(Task):
    """What summarization and translation have in common; each adds its name, columns, scores and
    baselines."""

    architecture = "marian"
    tokenizer_kind = "bpe"
    token_frame = "t5"
    judged_by = frozenset({"loss", "generation"})
    generates = True
    config: Seq2SeqConfig

    def __init__(self, config: Seq2SeqConfig, made: PretrainedConfig | None = None) -> None:
        super().__init__(config)
        self._made = made

    @classmethod
    def from_model_config(cls, config: Any, model_config: PretrainedConfig) -> Self:
        """The task for evaluating or using a trained model, read the way its config asks for."""
        return cls(config, model_config)

    @cached_property
    def way(self) -> EncoderDecoder | PromptedDecoder:
        """How the model reads and learns pairs of texts, by its own config: read once, when it is first asked
        for."""
        config, made = self.config, self._made
        if made is None and config.model.name is not None:
            made = read_config(config.model)
        if made is None or kind_of(made) != "decoder":
            return EncoderDecoder(made=made, max_target_length=config.max_target_length)
        plain, said = self.instructions()
        return PromptedDecoder(
            template=config.prompt_template or plain,
            chat_prompt=config.prompt_template or said,
            chat=config.chat,
            max_target_length=config.max_target_length,
        )

    @property
    def auto_model(self) -> str:  # type: ignore[override]
        """A causal language model is prompted; any other is an encoder-decoder, or becomes one
        (:mod:`hftk.models.encoder_decoder`)."""
        return self.way.auto_model

    @abstractmethod
    def instructions(self) -> tuple[str, str]:
        """What decoder-only models read where the user does not say it: a plain one, and a chat model;
        ``{source}`` in both."""

    def prepare(
        self, tables: Mapping[str, Table], places: Mapping[str, Sequence[Place]], columns: Mapping[str, str]
    ) -> Prepared:
        """Texts are taken as they are; ``references`` have to be lists of texts."""
        return Prepared(tables=tables, problems=list(_reference_problems(tables, places, columns)))

    def initialize(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, splits: Splits, new: Collection[str]
    ) -> None:
        """Derive how long an output may become from the training targets; it is saved with the model."""
        self.set_languages(model, tokenizer)
        most = self.way.start(model, tokenizer, self.config.train.max_length)
        every = max(1, -(-len(splits.train) // TARGETS_LOOKED_AT))
        targets = list(splits.train["target"])[::every]
        longest = max((len(ids) for ids in self.way.answers(targets, tokenizer)), default=1)
        config: Any = model.generation_config
        config.max_new_tokens, config.max_length = math.ceil(longest * MARGIN), None
        config.max_new_tokens = min(config.max_new_tokens, most or config.max_new_tokens)
        looked_at = "training target" if every == 1 else f"one of every {every} training targets"
        note(f"outputs have at most {config.max_new_tokens} tokens: the longest {looked_at} has {longest}")

    @abstractmethod
    def set_languages(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Tell tokenizer and model which languages are meant, where they need to know."""

    # --- Encoding

    def encode(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, *, max_length: int, training: bool
    ) -> Features:
        """One feature per row. Sources are cut to ``max_length``, counted; a target that is too long is
        refused.

        A feature's length is that of its source and its target together.
        """
        targets = list(rows["target"]) if "target" in rows.column_names else None
        columns, facts = self.way.encode(self.sources(rows), targets, tokenizer, max_length)
        if facts["truncated_rows"]:
            note(
                f"{facts['truncated_rows']:,} of {len(rows):,} sources are longer than {facts['max_length']}"
                f" tokens: {facts['tokens_lost']:,} tokens are cut off their ends"
            )
        self._check_targets(columns.get("labels", []), max_length)
        sides = np.stack(
            [np.array([len(ids) for ids in column], np.int64) for column in columns.values()], axis=1
        )
        padded = sides if self.way.two_sided and sides.shape[1] > 1 else None
        return Features(
            columns=columns, rows=np.arange(len(rows)), lengths=sides.sum(1), sides=padded, facts=facts
        )

    def encoded_by(self) -> dict[str, Any]:
        way = {name: getattr(self.way, name) for name in type(self.way).__dataclass_fields__}
        made = way.pop("made", None)
        return {
            "prefix": self.config.source_prefix,
            "kind": type(self.way).__name__,
            "made": made and made.to_dict(),
            **way,
        }

    def sources(self, rows: Dataset) -> list[str]:
        """What the model reads of each row: the prefix and the source."""
        return [self.config.source_prefix + text for text in rows["source"]]

    def prompts(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_length: int, new: int
    ) -> tuple[list[str], np.ndarray]:
        """What generation is given for each text, with ``new`` tokens to come in a context of ``max_length``;
        and (texts,) how many tokens were cut off each for that."""
        return self.way.prompts(
            [self.config.source_prefix + text for text in texts], tokenizer, max_length, new
        )

    def _check_targets(self, labels: list[np.ndarray], max_length: int) -> None:
        most = self.way.longest_target(max_length)
        long = [row for row, ids in enumerate(labels) if len(ids) > most]
        if long:
            longest = max(len(labels[row]) for row in long)
            raise InputError(
                Problem(
                    setting="max_target_length",
                    message=(
                        f"expected targets of at most {most} tokens, found {len(long):,} longer ones (the"
                        f" longest {longest:,}; first: row {long[0] + 1})"
                    ),
                    fix=(
                        f"use --max_target_length {longest} where the model allows it, or leave these"
                        " rows out"
                    ),
                )
            )

    def collator(
        self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, *, training: bool
    ) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        """Pads on the right."""
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        return lambda features: self.way.collate(features, model, pad_id)

    def example_batch(
        self, rows: int, length: int, target_length: int = 0, *, training: bool = True
    ) -> dict[str, torch.Tensor]:
        import torch

        ids, target = (
            torch.ones(rows, length, dtype=torch.long),
            torch.ones(rows, target_length, dtype=torch.long),
        )
        if not self.way.two_sided:
            return {"input_ids": ids, "labels": ids.clone()}
        return {
            "input_ids": ids,
            "attention_mask": ids.clone(),
            "labels": target,
            "decoder_input_ids": target.clone(),
        }

    # --- Loss

    def items(self, batch: Batch) -> dict[str, torch.Tensor]:
        """An item is a target token, the end token included."""
        return {"tokens": (batch["labels"] != IGNORED).sum()}

    def loss(self, model: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Cross-entropy in nats, summed over the target tokens."""
        from hftk.models.chunked_cross_entropy import cross_entropy_sum

        inputs, labels = self.way.aligned(batch)
        total = cross_entropy_sum(model, inputs, labels, label_smoothing=self.config.train.label_smoothing)
        return {"tokens": (total, self.items(batch)["tokens"])}

    def outputs(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """``nats``: (batch,) summed cross-entropy of each target, float64; ``tokens``: (batch,) its
        tokens."""
        from hftk.models.chunked_cross_entropy import token_losses

        inputs, labels = self.way.aligned(batch)
        nats = token_losses(model, inputs, labels)
        return {"nats": nats.cpu().double().sum(1), "tokens": (labels != IGNORED).sum(1)}

    # --- Judging

    def eval_loss(self, outputs: Mapping[str, np.ndarray]) -> float:
        return float(outputs["nats"].sum() / outputs["tokens"].sum())

    def generation(self, model: PreTrainedModel) -> GenerationSettings:
        """Settings of generation for judging: as asked, with the length that :meth:`initialize` derived."""
        settings = self.config.generation
        if settings.max_new_tokens:
            return settings
        derived = getattr(model.generation_config, "max_new_tokens", None)
        return replace(settings, max_new_tokens=derived or GenerationSettings.max_new_tokens)

    def scores(self, outputs: Outputs) -> list[Score]:
        """Scores of the generated texts, where there are some, and the loss per target token."""
        from hftk.metrics.bootstrap import ratio_interval

        interval = ratio_interval(outputs["nats"], outputs["tokens"], **outputs.bootstrap)
        tokenizer = outputs.tokenizer
        loss = Score(
            name="loss",
            value=self.eval_loss(outputs.arrays),
            unit="nats/token",
            higher_is_better=False,
            n=len(outputs.rows),
            interval=interval,
            signature=f"teacher forcing, end tokens included|{type(tokenizer).__name__}[{len(tokenizer)}]",
        )
        if "generated" not in outputs:
            return [loss]
        return [*self.text_scores(list(outputs["generated"]), outputs.rows, **outputs.bootstrap), loss]

    @abstractmethod
    def text_scores(self, predictions: list[str], rows: Dataset, *, resamples: int, seed: int) -> list[Score]:
        """Scores of texts against the references of ``rows``."""

    @abstractmethod
    def sentence_scores(self, predictions: list[str], rows: Dataset) -> np.ndarray:
        """(rows,) a score of each text by itself, for picking examples."""

    @abstractmethod
    def systems(self, rows: Dataset) -> dict[str, list[str]]:
        """Name to the outputs of trivial systems."""

    def baselines(self, splits: Splits, given: Outputs) -> list[Score]:
        return [
            replace(score, when=f"baseline:{name}")
            for name, texts in self.systems(given.rows).items()
            for score in self.text_scores(texts, given.rows, **given.bootstrap)
        ]

    def predictions(self, outputs: Outputs) -> list[dict[str, Any]]:
        """``prediction`` and ``reference`` of each row; without generation its loss alone."""
        rows = outputs.rows
        said = (
            [{"prediction": text} for text in outputs["generated"]]
            if "generated" in outputs
            else [{}] * len(rows)
        )
        return [
            {
                "index": i,
                **said[i],
                "reference": references_of(rows[i]),
                "nats": round(float(nats), 6),
                "tokens": int(tokens),
            }
            for i, (nats, tokens) in enumerate(zip(outputs["nats"], outputs["tokens"], strict=True))
        ]

    def analysis(self, outputs: Outputs) -> list[dict[str, Any]]:
        """Best, median and worst examples by sentence score, facts about the outputs, and the score by source
        length."""
        if "generated" not in outputs:
            return []
        from hftk.metrics.overlap import output_facts

        rows, predictions = outputs.rows, list(outputs["generated"])
        scores = self.sentence_scores(predictions, rows)
        order = np.argsort(-scores, kind="stable")
        middle = len(order) // 2
        facts = output_facts(
            predictions, [references_of(row) for row in rows], list(rows["source"]), self.target_language
        )
        sections: list[dict[str, Any]] = [{"title": "About the outputs", "kind": "facts", "facts": facts}]
        for title, some in (
            ("Best", order[:5]),
            ("Median", order[max(0, middle - 2) : middle + 3]),
            ("Worst", order[::-1][:5]),
        ):
            lines = [
                {
                    "source": rows[int(i)]["source"][:1000],
                    "prediction": predictions[int(i)],
                    "reference": " | ".join(references_of(rows[int(i)])),
                    "score": round(float(scores[i]), 2),
                }
                for i in some
            ]
            sections.append({"title": f"{title} outputs", "kind": "examples", "rows": lines})
        return [*sections, _by_length(outputs.features.lengths - outputs["tokens"], scores)]

    @property
    def target_language(self) -> str | None:
        """Language of the targets, by which metrics choose their tokens; None: by script."""
        return None

    def samples(self, outputs: Outputs) -> list[dict[str, Any]]:
        """The first rows, with what was generated for them."""
        if "generated" not in outputs:
            return []
        rows = outputs.rows
        return [
            {
                "source": rows[i]["source"][:500],
                "prediction": outputs["generated"][i],
                "reference": " | ".join(references_of(rows[i])),
            }
            for i in range(min(3, len(rows)))
        ]


def references_of(row: Mapping[str, Any]) -> list[str]:
    """The references of a row: ``references`` where it has several, else the target."""
    several = row.get("references")
    return list(several) if several else [row["target"]]


def _reference_problems(
    tables: Mapping[str, Table], places: Mapping[str, Sequence[Place]], columns: Mapping[str, str]
) -> Iterator[Problem]:
    for split, table in tables.items():
        for row, value in enumerate(table.get("references", ())):
            if value is not None and not (
                isinstance(value, list) and all(isinstance(text, str) for text in value)
            ):
                file, number = places[split][row]
                message = (
                    f"expected a list of texts in column {columns['references']}, found {value!r:.60} in row"
                    f" {number} of {file}"
                )
                yield Problem(
                    setting="data.columns.references",
                    message=message,
                    fix='write references as ["one", "another"]',
                )
                break


def _by_length(lengths: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """Mean sentence score of the rows in each quarter of source ``lengths``."""
    edges = np.unique(np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1]).astype(int))
    edges = edges if len(edges) > 1 else np.repeat(edges, 2)
    lines = []
    for low, high in pairwise(edges):
        inside = (lengths >= low) & ((lengths < high) | (high == edges[-1]))
        if inside.any():
            lines.append(
                {
                    "tokens": f"{low} to {high}",
                    "rows": int(inside.sum()),
                    "score": round(float(scores[inside].mean()), 2),
                }
            )
    columns = [
        {"key": key, "title": title}
        for key, title in (("tokens", "source tokens"), ("rows", "rows"), ("score", "mean score"))
    ]
    return {"title": "Score by source length", "kind": "table", "columns": columns, "rows": lines}
