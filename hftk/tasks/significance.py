"""Is the model better than its baselines? Both are judged on the same rows, and the difference is tested and
told in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hftk.metrics.comparison import (
    Comparison,
    compare_multi_label,
    compare_regression,
    compare_single_label,
    in_words,
    mcnemar,
)
from hftk.tasks.class_predictions import SCORES, Answers, labels_in, truth
from hftk.tasks.labels import REGRESSION, SINGLE

if TYPE_CHECKING:
    from datasets import Dataset

MODEL = "the model"
SAID = {"majority": "the majority class", "tfidf": "TF-IDF + logistic regression"}
SAID_OF_NUMBERS = {"majority": "the mean", "tfidf": "TF-IDF + ridge regression"}
TEXTS = ("text", "text_pair")
HEADS = {
    "baseline": "baseline",
    "score": "score",
    "model": "model",
    "value": "baseline's",
    "difference": "difference",
    "p_value": "p",
}


@dataclass(frozen=True)
class BaselineAnswers:
    """What baselines answered on the rows that they were judged on."""

    rows: Dataset
    answers: Mapping[str, Answers]
    """Name of the baseline (majority, tfidf) to its answers."""

    def cover(self, rows: Dataset) -> bool:
        """Whether these are the rows: the same texts and labels in the same order."""
        names = [name for name in (*TEXTS, "label") if name in rows.column_names]
        return len(rows) == len(self.rows) and all(
            list(rows[name]) == list(self.rows[name]) for name in names
        )


def compare(found: Answers, other: Answers, rows: Dataset, *, resamples: int, seed: int) -> list[Comparison]:
    """Scores of two systems on ``rows`` by the paired bootstrap, the main one first; those that are undefined
    are left out.

    On few rows the bootstrap is too sure. No p-value is below 2 / 2^m, the least of an exact test on the m
    rows that the two answer differently, and that of accuracy not below McNemar's.
    """
    labels = labels_in(rows)
    chance = {"resamples": resamples, "seed": seed}
    true = truth(rows, labels)
    if labels.problem_type == REGRESSION:
        compared = compare_regression(
            np.array(list(rows["label"]), np.float64), found.chosen, other.chosen, **chance
        )
    elif labels.problem_type == SINGLE:
        compared = compare_single_label(true, found.chosen, other.chosen, labels.names, **chance)
    else:
        compared = compare_multi_label(true.astype(bool), found.chosen, other.chosen, labels.names, **chance)
    differs = found.chosen != other.chosen
    least = (
        {"accuracy": mcnemar(found.chosen == true, other.chosen == true).p_value}
        if labels.problem_type == SINGLE
        else {}
    )
    exact = min(1.0, 2.0 ** (1 - int((differs.any(1) if differs.ndim == 2 else differs).sum())))
    return [
        replace(
            one,
            p_value=one.p_value if one.p_value is None else max(one.p_value, exact, least.get(one.name, 0)),
        )
        for one in compared
        if np.isfinite(one.difference)
    ]


def compare_with_baselines(
    found: Answers, rivals: BaselineAnswers | None, rows: Dataset, *, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """A section for the report with the test of every score against every baseline; [] where none was judged
    on these rows.

    Its rows have, beside what is shown, ``when`` as the baseline's scores have it, and ``interval``: by these
    :meth:`hftk.reports.record.RunRecord.test_against` finds the test of a score.
    """
    if rivals is None or not rivals.cover(rows):
        return []
    labels = labels_in(rows)
    said = SAID_OF_NUMBERS if labels.problem_type == REGRESSION else SAID
    lines, words = [], []
    for name, answers in rivals.answers.items():
        compared = compare(found, answers, rows, resamples=resamples, seed=seed)
        for one in compared:
            lines.append(
                {
                    "when": f"baseline:{name}",
                    "baseline": said[name],
                    "score": one.name,
                    "model": one.a,
                    "value": one.b,
                    "difference": {"value": one.difference, "interval": one.interval},
                    "p_value": one.p_value,
                }
            )
        words += [
            in_words(one, MODEL, said[name]) for one in compared if one.name == SCORES[labels.problem_type][0]
        ]
        if labels.problem_type == SINGLE:
            true = truth(rows, labels)
            test = mcnemar(found.chosen == true, answers.chosen == true)
            words.append(
                f"McNemar: {MODEL} alone has {test.only_a:,} rows right, {said[name]} alone {test.only_b:,},"
                f" p = {test.p_value:.3g}."
            )
    if not lines:
        return []
    note = f"The same {len(rows):,} rows, by the paired bootstrap. {' '.join(words)}"
    return [
        {
            "title": "Against the baselines",
            "kind": "table",
            "columns": [{"key": key, "title": title} for key, title in HEADS.items()],
            "rows": lines,
            "note": note,
        }
    ]
