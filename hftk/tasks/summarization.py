"""Summarization: a long text to a short one that says the same (T5, BART, Pegasus and their like; a decoder
such as GPT-2 or Llama is prompted, an encoder such as BERT becomes both halves of an encoder-decoder).

Needs     a column with the document and one with the summary.
When      to write abstracts, titles, minutes of dialogues, descriptions of changes.
Siblings  translation for two languages; causal_lm for text without targets.

    accelerate launch recipes/t5_summarization.py --data.path articles.jsonl --model.name google-t5/t5-small
    --source_prefix "summarize: "
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hftk.task import Column, Score
from hftk.tasks.seq2seq import REFERENCES, Seq2Seq, Seq2SeqConfig, references_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class SummarizationConfig(Seq2SeqConfig):
    """Settings of summarization."""

    language: str | None = None
    """Language of the summaries, such as en or zh, for facts about the outputs. Default: by script."""
    stem: bool = False
    """ROUGE over stems (Porter), for English alone."""


class Summarization(Seq2Seq):
    """The task object for one config; see the module's docstring."""

    name = "summarization"
    title = "Summarization"
    pipeline_tag = "summarization"
    architecture = "t5"
    columns: Mapping[str, Column] = {
        "source": Column(
            usual_names=("source", "document", "article", "dialogue", "text", "content", "body"),
            incomplete="error",
        ),
        "target": Column(
            usual_names=("target", "summary", "highlights", "abstract", "title", "headline"),
            identity=False,
            incomplete="error",
        ),
        "references": REFERENCES,
    }
    score_names = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    config: SummarizationConfig

    @property
    def target_language(self) -> str | None:
        return self.config.language

    def instructions(self) -> tuple[str, str]:
        return "{source}\n\nSummary: ", "Summarize the following text.\n\n{source}"

    def set_languages(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """There is one language, and nothing to tell."""

    def text_scores(self, predictions: list[str], rows: Dataset, *, resamples: int, seed: int) -> list[Score]:
        """ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum; of several references the best one counts."""
        from hftk.metrics.rouge import rouge_scores

        references = [references_of(row) for row in rows]
        return rouge_scores(predictions, references, stem=self.config.stem, resamples=resamples, seed=seed)

    def sentence_scores(self, predictions: list[str], rows: Dataset) -> np.ndarray:
        """(rows,) ROUGE-L of each summary."""
        from hftk.metrics.rouge import NAMES, rouge_rows

        found = rouge_rows(predictions, [references_of(row) for row in rows], stem=self.config.stem)
        return found[:, NAMES.index("rougeL")]

    @classmethod
    def compare(
        cls,
        lines: tuple[list[dict[str, Any]], list[dict[str, Any]]],
        names: tuple[str, str],
        config: Mapping[str, Any],
        *,
        resamples: int,
        seed: int,
    ) -> tuple[list[Any], list[str]]:
        from hftk.metrics.rouge import compare_rouge

        references = [line["reference"] for line in lines[0]]
        one, other = ([line["prediction"] for line in run] for run in lines)
        return compare_rouge(
            one, other, references, stem=bool(config.get("stem")), resamples=resamples, seed=seed
        ), []

    def systems(self, rows: Dataset) -> dict[str, list[str]]:
        """The first sentence, the first three, and the longest one."""
        sentences = [split_sentences(text) for text in rows["source"]]
        return {
            "lead_1": [" ".join(some[:1]) for some in sentences],
            "lead_3": [" ".join(some[:3]) for some in sentences],
            "longest_sentence": [max(some, key=len, default="") for some in sentences],
        }


def split_sentences(text: str) -> list[str]:
    """Sentences by their ends, as :func:`hftk.metrics.rouge.mark_sentences` sees them, and by lines, in any
    script."""
    from hftk.metrics.rouge import mark_sentences

    found = [part.strip() for line in text.splitlines() for part in mark_sentences(line).split("\n")]
    return [part for part in found if part] or [text]
