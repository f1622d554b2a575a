"""Training labels that are probably wrong.

Two opinions must agree against the label: the trained model's (which has seen the row with that label and
still does not believe it), and that of cross-validated TF-IDF models, which have not seen it. Rows are ranked
by the mean of the two probabilities of the given label. After Northcutt et al. 2021, *Confident Learning*
(arXiv:1911.00068), which uses cross-validation alone.

With several labels per row an opinion is a decision by its thresholds: the model's as tuned on the validation
split, TF-IDF's tuned on its out-of-fold probabilities. Then a probability counts by where it lies between 0,
its threshold and 1. And each opinion must be as sure as it is on average of rows that are labelled so (the
thresholds of *Confident Learning*): with many labels, a weak model decides wrongly about one or the other in
every second row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hftk.console import note
from hftk.launch import on_main
from hftk.metrics.calibration import tune_thresholds
from hftk.task import Splits
from hftk.tasks.class_predictions import answers, labels_in, said_of, truth
from hftk.tasks.labels import MULTI, REGRESSION
from hftk.tasks.tfidf import cross_validate

if TYPE_CHECKING:
    from hftk.task import PredictRows

MOST_ROWS = 20_000
"""Training rows that are looked at, at most: each costs a forward pass."""
LONGEST = 300
"""Characters of a text that are shown."""


def find_label_errors(
    splits: Splits, predict_rows: PredictRows, *, most: int, thresholds: Sequence[float] | None = None
) -> list[dict[str, Any]]:
    """A section with the ``most`` suspicious rows of the training split, the most suspicious first; [] for
    regression.

    ``thresholds``: (labels,) tuned ones of the model with several labels per row; None: 0.5 for the model and
    for TF-IDF.
    """
    if labels_in(splits.train).problem_type == REGRESSION:
        return []
    everything = len(splits.train)
    chosen = np.sort(np.random.default_rng(0).permutation(everything)[:MOST_ROWS])
    rows, outputs = predict_rows("train", None if len(chosen) == everything else chosen.tolist())
    if len(rows) < everything:
        note(
            f"suspicious labels are looked for in {len(rows):,} of {everything:,} training rows, drawn at"
            " random"
        )
    labels = labels_in(rows)
    true = truth(rows, labels)
    own, other = answers(outputs).probabilities, on_main(cross_validate, rows)
    assert own is not None
    if labels.problem_type == MULTI:
        belief, label, probability = _several(true, own, other, thresholds)
    else:
        belief, label = _single(true, own, other)
        probability = belief
    order = np.argsort(belief, kind="stable")
    found = [int(i) for i in order if np.isfinite(belief[i])]
    lines = []
    for i in found[:most]:
        row = rows[i]
        line = {
            "row": int(chosen[i]),
            **{role: row[role][:LONGEST] for role in ("text", "text_pair") if role in row},
        }
        better = labels.names[int(label[i])]
        if labels.problem_type == MULTI and true[i, label[i]]:
            better = f"not {better}"  # the doubt is about a label that the row has
        given = said_of(row["label"], labels)
        line |= {
            "label": given if isinstance(given, str) else ", ".join(given) or "none",
            "prediction": better,
        }
        lines.append({**line, "probability_of_label": round(float(probability[i]), 3)})
    note(
        f"suspicious labels: {len(found):,} of {len(rows):,} training rows"
        + (" (see the report)" if found else "")
    )
    return [
        {
            "title": "Suspicious labels",
            "kind": "examples",
            "split": "train",
            "rows": lines,
            "note": (
                f"{len(found):,} of {len(rows):,} training rows: neither the trained model nor a"
                " cross-validated TF-IDF model believes the label. The most suspicious first."
            ),
        }
    ]


def find_conflicts(splits: Splits) -> list[dict[str, Any]]:
    """A section with texts that stand in the data twice with different labels, in one split or in two; []
    where there are none."""
    conflicts = splits.facts.get("conflicts", {})
    lines = [
        {
            "text": " | ".join(
                str(pair["first"][role])[:LONGEST] for role in ("text", "text_pair") if role in pair["first"]
            ),
            "label": _label(pair["first"]),
            "place": _place(pair["places"][0]),
            "other": _label(pair["other"]),
            "other_place": _place(pair["places"][1]),
        }
        for found in conflicts.values()
        for pair in found["examples"]
    ]
    if not lines:
        return []
    counted = ", ".join(
        f"{found['rows']:,} in {where}" for where, found in conflicts.items() if found["rows"]
    )
    titles = {
        "text": "text",
        "label": "first label",
        "place": "where",
        "other": "other label",
        "other_place": "where",
    }
    return [
        {
            "title": "Duplicates with conflicting labels",
            "kind": "table",
            "rows": lines,
            "columns": [{"key": key, "title": title} for key, title in titles.items()],
            "note": (
                f"Rows that repeat an earlier text, or one of another split, with another label: {counted}."
                " Of repeated training rows the first one is kept, and none that a held-out split has too."
            ),
        }
    ]


def _place(place: Sequence[Any]) -> str:
    split, file, row = place
    return f"{split}: row {row} of {file}"


def _label(row: dict[str, Any]) -> str:
    value = row.get("label")
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _single(true: np.ndarray, own: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) mean probability of the given label, inf where an opinion agrees with it; (rows,) the likeliest
    other label."""
    rows = np.arange(len(true))
    both = (own + other) / 2
    doubted = (own.argmax(1) != true) & (other.argmax(1) != true)
    others = both.copy()
    others[rows, true] = -1  # two different opinions may leave the given label in front on average
    return np.where(doubted, both[rows, true], np.inf), others.argmax(1)


def _several(
    true: np.ndarray, own: np.ndarray, other: np.ndarray, thresholds: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By the decision of each row that is least believed, a label that is missing or too much: (rows,) belief
    in it from 0 to 1, inf where an opinion agrees with every decision; (rows,) the label; (rows,) the mean
    probability of the decision."""
    present = true > 0
    opinions = [own, other]
    sure = _sure(present, own) & _sure(present, other)
    if thresholds is not None:
        opinions = [_centred(own, np.array(thresholds)), _centred(other, tune_thresholds(present, other))]
    chosen = [opinion >= 0.5 for opinion in opinions]
    right = lambda p: np.where(present, p, 1 - p)  # noqa: E731
    doubted = sure & (chosen[0] != present) & (chosen[1] != present)
    believed = np.where(doubted, (right(opinions[0]) + right(opinions[1])) / 2, np.inf)
    worst, rows = believed.argmin(1), np.arange(len(true))
    return believed[rows, worst], worst, right((own + other) / 2)[rows, worst]


def _sure(present: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(rows, labels) whether a probability is as far on the other side as the mean of the rows whose label is
    the other way."""
    having = np.where(present, probabilities, 0).sum(0) / np.maximum(present.sum(0), 1)
    lacking = np.where(present, 0, probabilities).sum(0) / np.maximum((~present).sum(0), 1)
    found: np.ndarray = np.where(
        present, probabilities <= lacking, (probabilities >= having) & present.any(0)
    )
    return found


def _centred(probabilities: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """(rows, labels) from 0 to 1, rising with the probability, and 0.5 at each label's threshold."""
    below, above = np.maximum(thresholds, 1e-12), np.maximum(1 - thresholds, 1e-12)
    found: np.ndarray = np.where(
        probabilities < thresholds,
        0.5 * probabilities / below,
        0.5 + 0.5 * (probabilities - thresholds) / above,
    )
    return found
