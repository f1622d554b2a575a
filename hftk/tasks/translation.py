"""Translation: a text in one language to the same text in another (Marian, M2M100, NLLB, mBART, T5 and their
like; a decoder such as GPT-2 or Llama is prompted, an encoder such as BERT becomes both halves of an
encoder-decoder).

Needs     a column with the source and one with the target.
When      to adapt a translation model to your texts, or to train a small one from nothing.
Siblings  summarization for one language; causal_lm for text without targets.

    accelerate launch recipes/marian_translation.py --data.path pairs.jsonl --data.columns.source en
    --data.columns.target de \
        --source_language en --target_language de --model.name Helsinki-NLP/opus-mt-en-de
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hftk.config import InputError, Problem
from hftk.data.tables import did_you_mean
from hftk.task import Column, Score
from hftk.tasks.encoder_decoder_inputs import target_ids
from hftk.tasks.seq2seq import REFERENCES, Seq2Seq, Seq2SeqConfig, references_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class TranslationConfig(Seq2SeqConfig):
    """Settings of translation."""

    source_language: str | None = None
    """Language of the sources: a code such as en, or as the model's tokenizer writes it, such as eng_Latn."""
    target_language: str | None = None
    """Language of the targets, likewise; the metrics choose their tokenizer by it."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.source_language is not None and self.source_language == self.target_language:
            yield Problem(
                setting="target_language",
                message=f"expected another language than the source's, found {self.target_language} for both",
            )


class Translation(Seq2Seq):
    """The task object for one config; see the module's docstring."""

    name = "translation"
    title = "Translation"
    pipeline_tag = "translation"
    columns: Mapping[str, Column] = {
        "source": Column(usual_names=("source", "src", "en", "english"), incomplete="error"),
        "target": Column(
            usual_names=("target", "tgt", "translation", "de", "zh", "fr"), identity=False, incomplete="error"
        ),
        "references": REFERENCES,
    }
    score_names = ("bleu", "chrf++", "ter")
    config: TranslationConfig

    def instructions(self) -> tuple[str, str]:
        source, target = (
            _language_name(code) for code in (self.config.source_language, self.config.target_language)
        )
        if source is None or target is None:
            return "{source}\n\nTranslation: ", "Translate the following text.\n\n{source}"
        return (
            f"{source}: {{source}}\n{target}: ",
            f"Translate the following text from {source} to {target}.\n\n{{source}}",
        )

    @property
    def target_language(self) -> str | None:
        return self.config.target_language

    def set_languages(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Source and target language of tokenizers that know several (mBART, M2M100, NLLB), and the first
        token of outputs.

        Raises:
            InputError: no language where the tokenizer needs one, or one that it does not know.
        """
        made: Any = tokenizer
        codes = _codes(made)
        if not codes:
            return
        problems = []
        for side in ("source", "target"):
            asked = getattr(self.config, f"{side}_language")
            if asked not in codes:
                found = "none" if asked is None else f"{asked}{did_you_mean(asked, codes)}"
                problems.append(
                    Problem(
                        setting=f"{side}_language",
                        message=f"expected a language that the model knows, found {found}",
                        fix=f"choose among {', '.join(sorted(codes)[:12])} ...",
                    )
                )
        if problems:
            raise InputError(*problems)
        made.src_lang, made.tgt_lang = self.config.source_language, self.config.target_language
        language = codes[self.config.target_language or ""]
        settings: Any = model.generation_config
        if target_ids(["a"], made)[0][0] == language:
            settings.forced_bos_token_id = language
        else:  # the first mBART ends its targets with the language, and starts the decoder with it
            settings.forced_bos_token_id, settings.decoder_start_token_id = None, language
            model.config.decoder_start_token_id = language

    def text_scores(self, predictions: list[str], rows: Dataset, *, resamples: int, seed: int) -> list[Score]:
        """BLEU, chrF++ and TER, by sacreBLEU."""
        from hftk.metrics.translation import translation_scores

        references = [references_of(row) for row in rows]
        return translation_scores(
            predictions, references, self.target_language, resamples=resamples, seed=seed
        )

    def sentence_scores(self, predictions: list[str], rows: Dataset) -> np.ndarray:
        """(rows,) chrF++ of each sentence."""
        from hftk.metrics.translation import sentence_scores

        return sentence_scores(predictions, [references_of(row) for row in rows], self.target_language)

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
        from hftk.metrics.translation import compare_translations

        references = [line["reference"] for line in lines[0]]
        one, other = ([line["prediction"] for line in run] for run in lines)
        return compare_translations(
            one, other, references, config.get("target_language"), resamples=resamples, seed=seed
        ), []

    def systems(self, rows: Dataset) -> dict[str, list[str]]:
        """Copying the source."""
        return {"copy": list(rows["source"])}


def _language_name(code: str | None) -> str | None:
    """English name of a language, for a prompt; the code itself where it is none of the hundred that
    transformers has names of."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    if code is None:
        return None
    name = LANGUAGES.get(code.lower().replace("-", "_").split("_")[0])
    return code if name is None else name.title()


def _codes(tokenizer: Any) -> dict[str, int]:
    """Language codes that a tokenizer of several languages knows, to the id of their token; {} for any
    other."""
    known = getattr(tokenizer, "lang_code_to_id", None)
    if known:
        return dict(known)
    if not hasattr(tokenizer, "src_lang"):
        return {}
    special = (
        getattr(tokenizer, "additional_special_tokens", None)
        or getattr(tokenizer, "extra_special_tokens", None)
        or ()
    )
    return {str(token): tokenizer.convert_tokens_to_ids(str(token)) for token in special}
