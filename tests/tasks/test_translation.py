"""Translation: languages of tokenizers that know several, scores by target language, and copying as the
baseline."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import made_pairs
import pytest
from datasets import Dataset
from made_pairs import make_config, rows_of

import hftk
from hftk.config import InputError
from hftk.task import Outputs, Splits

CODES = {"en_XX": 11, "de_DE": 12, "zh_CN": 13}


class Polyglot:
    """A tokenizer of several languages: as mBART-50's with the language first, as the first mBART's with it
    last."""

    eos_token_id = 2

    def __init__(self, codes: Any = CODES, *, first: bool = True) -> None:
        self.lang_code_to_id, self.first = codes, first
        self.src_lang = self.tgt_lang = "en_XX"

    def __call__(self, text_target: list[str], **_: Any) -> dict[str, list[list[int]]]:
        language = self.lang_code_to_id[self.tgt_lang]
        bodies = [[20 + len(text), 2] for text in text_target]
        return {"input_ids": [[language, *ids] if self.first else [*ids, language] for ids in bodies]}


def task_of(**settings: Any) -> hftk.Translation:
    return hftk.Translation(hftk.TranslationConfig(**settings))


def empty_model() -> Any:
    return SimpleNamespace(
        config=SimpleNamespace(decoder_start_token_id=2),
        generation_config=SimpleNamespace(forced_bos_token_id=None, decoder_start_token_id=2),
    )


# --- Languages


def test_a_tokenizer_of_several_languages_is_told_both_and_outputs_begin_with_the_target() -> None:
    model, tokenizer = empty_model(), Polyglot()
    task_of(source_language="en_XX", target_language="de_DE").set_languages(model, tokenizer)  # type: ignore[arg-type]
    assert (tokenizer.src_lang, tokenizer.tgt_lang) == ("en_XX", "de_DE")
    assert (
        model.generation_config.forced_bos_token_id == 12
        and model.generation_config.decoder_start_token_id == 2
    )


def test_where_targets_end_with_the_language_the_decoder_starts_with_it() -> None:
    model, tokenizer = empty_model(), Polyglot(first=False)
    task_of(source_language="de_DE", target_language="zh_CN").set_languages(model, tokenizer)  # type: ignore[arg-type]
    assert model.generation_config.forced_bos_token_id is None
    assert model.generation_config.decoder_start_token_id == model.config.decoder_start_token_id == 13


def test_languages_are_found_among_the_special_tokens_too() -> None:
    """NLLB's tokenizer has no table of them."""

    class Nllb(Polyglot):
        extra_special_tokens = ("eng_Latn", "deu_Latn")

        def convert_tokens_to_ids(self, token: str) -> int:
            return {"eng_Latn": 11, "deu_Latn": 12}[token]

        def __call__(self, text_target: list[str], **_: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [[self.convert_tokens_to_ids(self.tgt_lang), 20, 2] for _ in text_target]}

    model = empty_model()
    task_of(source_language="eng_Latn", target_language="deu_Latn").set_languages(model, Nllb(None))  # type: ignore[arg-type]
    assert model.generation_config.forced_bos_token_id == 12


@pytest.mark.parametrize(
    ("kind", "source", "target"),
    [("NllbTokenizer", "eng_Latn", "deu_Latn"), ("MBart50Tokenizer", "en_XX", "de_DE")],
)
def test_the_tokenizers_of_transformers_are_told_their_languages(kind: str, source: str, target: str) -> None:
    import transformers

    model, tokenizer = (
        empty_model(),
        getattr(transformers, kind)(src_lang=source, tgt_lang=source),
    )  # without words
    task_of(source_language=source, target_language=target).set_languages(model, tokenizer)
    first = model.generation_config.forced_bos_token_id
    assert (
        tokenizer.convert_ids_to_tokens(first) == target
        and tokenizer(text_target="a")["input_ids"][0] == first
    )
    assert tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"][0]) == source


def test_an_unknown_or_missing_language_is_refused_with_what_to_type() -> None:
    with pytest.raises(InputError) as caught:
        task_of(target_language="de_DD").set_languages(empty_model(), Polyglot())  # type: ignore[arg-type]
    source, target = caught.value.problems
    assert source.setting == "source_language" and "found none" in source.message
    assert (
        target.setting == "target_language"
        and "found de_DD" in target.message
        and "did you mean de_DE?" in target.message
    )
    assert "de_DE, en_XX, zh_CN" in target.fix


def test_a_tokenizer_of_one_pair_of_languages_needs_no_code() -> None:
    model = empty_model()
    tokenizer = SimpleNamespace(eos_token_id=1)
    task_of().set_languages(model, tokenizer)  # type: ignore[arg-type]
    task_of(source_language="en", target_language="anything").set_languages(model, tokenizer)  # type: ignore[arg-type]
    assert model.generation_config.forced_bos_token_id is None


def test_a_forced_first_token_is_not_in_the_predictions(tmp_path: Any) -> None:
    """The whole way, with a Marian whose tokenizer is given two languages."""
    config = make_config(
        tmp_path, "marian", kind=hftk.TranslationConfig, source_language="en", target_language="de"
    )
    task, model, tokenizer = made_pairs.load(config, Splits(train=rows_of(48)))
    tokenizer.add_special_tokens({"additional_special_tokens": ["__en__", "__de__"]})
    model.resize_token_embeddings(len(tokenizer))
    model.generation_config.forced_bos_token_id = tokenizer.convert_tokens_to_ids("__de__")
    judged = hftk.evaluate(task, model, tokenizer, ("test", rows_of(6)), config.eval)
    assert judged is not None and not any("__" in line["prediction"] for line in judged.predictions)


def test_the_same_language_on_both_sides_is_a_mistake() -> None:
    config = hftk.TranslationConfig(source_language="de", target_language="de")
    assert "target_language" in [problem.setting for problem in config.problems()]
    assert not [p for p in hftk.TranslationConfig().problems() if p.setting == "target_language"]


# --- Scores

PERFECT = {
    "de": "Der Zug kommt um acht Uhr an.",
    "zh": "火车八点钟到达车站。",
    "en": "The train arrives at eight o'clock.",
    "ru": "Поезд прибывает в восемь часов утра.",
    "ar": "يصل القطار في الساعة الثامنة صباحا.",
    "hi": "ट्रेन सुबह आठ बजे आती है।",
}


@pytest.mark.parametrize("language", PERFECT)
def test_a_perfect_translation_scores_best_in_every_metric(language: str) -> None:
    rows = Dataset.from_dict({"source": ["x", "y"], "target": [PERFECT[language]] * 2})
    task = task_of(target_language=language)
    scores = {
        score.name: score for score in task.text_scores([PERFECT[language]] * 2, rows, resamples=0, seed=0)
    }
    assert list(scores) == ["bleu", "chrf++", "ter"]
    assert (
        scores["bleu"].value == pytest.approx(100)
        and scores["chrf++"].value == pytest.approx(100)
        and scores["ter"].value == 0
    )
    assert f"tok:{'zh' if language == 'zh' else '13a'}" in scores["bleu"].signature
    assert task.sentence_scores([PERFECT[language]] * 2, rows).tolist() == pytest.approx([100, 100])


def test_scores_equal_those_of_sacrebleu() -> None:
    from sacrebleu.metrics import BLEU, CHRF, TER

    said = ["the cat sat on a mat", "a dog barks loudly at night"]
    right = ["the cat sat on the mat", "the dog barks at night"]
    rows = Dataset.from_dict({"source": ["x", "y"], "target": right})
    found = {
        s.name: s.value for s in task_of(target_language="en").text_scores(said, rows, resamples=0, seed=0)
    }
    for name, metric in (("bleu", BLEU()), ("chrf++", CHRF(word_order=2)), ("ter", TER(case_sensitive=True))):
        assert found[name] == pytest.approx(metric.corpus_score(said, [right]).score, abs=1e-9)


def test_copying_the_source_is_the_baseline() -> None:
    rows = Dataset.from_dict({"source": ["Peter", "42"], "target": ["Peter", "43"]})
    task = task_of(target_language="de")
    assert task.systems(rows) == {"copy": ["Peter", "42"]}
    scores = task.baselines(
        Splits(train=rows), Outputs(features=None, rows=rows, tokenizer=None, resamples=0, seed=0)
    )  # type: ignore[arg-type]
    assert {score.when for score in scores} == {"baseline:copy"} and [s.name for s in scores] == [
        "bleu",
        "chrf++",
        "ter",
    ]
    assert {score.name: score.value for score in scores}["ter"] == 50.0


def test_columns_go_by_their_usual_names(tmp_path: Any) -> None:
    config = make_config(
        tmp_path,
        "marian",
        kind=hftk.TranslationConfig,
        data={"validation_fraction": 0.0, "test_fraction": 0.0},
    )
    rows = [{"en": f"text {i}", "de": f"Text {i}"} for i in range(9)]
    train = hftk.load_splits(config.data, made_pairs.task_of(config), rows).train
    assert sorted(train.column_names) == ["source", "target"] and {
        (r["source"], r["target"]) for r in train
    } == {(r["en"], r["de"]) for r in rows}
