"""Labels of a classification data set: which kind of problem they pose, what they are called, and what is
wrong with them.

Everything is found before training and told at once, with rows and counts. The names are sorted stably
(numbers by value, texts by code point), kept in the model's config, and applied again at prediction.
"""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from hftk.config import Problem
from hftk.data.dedup import normalized
from hftk.data.tables import did_you_mean

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
SINGLE: ProblemType = "single_label_classification"
MULTI: ProblemType = "multi_label_classification"
REGRESSION: ProblemType = "regression"

FEW_CLASSES = 20
"""Up to so many classes no question is asked about their number."""
MOST_CLASSES = 1000
"""More classes than this, or more than a third of the rows, are taken for a mistake unless the problem type
is set by hand."""
SHOWN = 3
EMPTY_LIST = "empty list"
SORTS = ("text", "number", "true/false", "list of text", "list of number", "list of true/false")
"""Kinds of labels that make sense; lists may be empty."""
Place = tuple[str, int]
"""File (or other source) and row in it, from 1 on."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a model answers with."""

    problem_type: ProblemType
    names: tuple[str, ...] = ()
    """Class names, in the order of the model's outputs; () for regression."""
    reason: str = ""
    """Why this problem type, for people."""

    @property
    def outputs(self) -> int:
        """Outputs of the model: one per class, one for regression."""
        return len(self.names) or 1


@dataclass(frozen=True)
class LabelColumn:
    """The labels of one split, and where each row stands."""

    values: Sequence[Any]
    places: Sequence[Place]


def labels_of(config: Any) -> Labels | None:
    """The labels that a model's config holds; None for a config of another kind of model."""
    if not any("ForSequenceClassification" in name for name in config.architectures or ()):
        return None
    kind = config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE)
    names = () if kind == REGRESSION else tuple(config.id2label[i] for i in range(config.num_labels))
    return Labels(problem_type=kind, names=names, reason="as the model's config says")


def find_labels(
    columns: Mapping[str, LabelColumn],
    *,
    asked: str,
    separator: str | None,
    column: str,
    known: Labels | None = None,
) -> tuple[Labels | None, list[Problem]]:
    """Tell the kind of problem from the training labels, and everything that is wrong with the labels of all
    splits.

    Args:
        columns: split to labels; ``train`` is among them unless the labels are ``known``.
        asked: ``problem_type`` as set by hand, or ``auto``.
        separator: what stands between several labels in one text.
        column: the label column's name, for messages.
        known: the labels of a model that is there already; the rows are held against them.

    Returns:
        The labels (None where they cannot be told) and the problems.
    """
    split_up = {
        s: LabelColumn([_parts(v, separator) for v in c.values], c.places) for s, c in columns.items()
    }
    usable, odd = _of_one_kind(split_up, asked, column)
    train = usable.get("train", LabelColumn((), ()))
    if known is not None:
        kind, reason = known.problem_type, known.reason
    elif not train.values:
        return None, odd
    else:
        kind, reason = (asked, "as asked") if asked != "auto" else _tell(train.values)  # type: ignore[assignment]
    if kind == REGRESSION:
        wrong = [*_not_numbers(usable, column)]
        alike = {_number(value) for value in train.values}
        if known is None and not wrong and len(alike) < 2:
            message = (
                f"expected numbers that differ in the training rows, found {alike.pop():g} alone in column"
                f" {column}"
            )
            wrong.append(
                Problem(
                    setting="data.columns.label",
                    message=message,
                    fix="name the label column: --data.columns.label NAME",
                )
            )
        return Labels(problem_type=REGRESSION, reason=reason), [*odd, *wrong]
    wrong = list(_wrong_kind(usable, kind, column))
    if wrong:
        return None, [*odd, *wrong]
    if known is not None:
        known = _numbered(known, usable)
        return known, [*odd, *unseen(usable, known.names, column)]
    counts = Counter(name for value in train.values for name in classes_in(value))
    labels = Labels(problem_type=kind, names=tuple(sorted(counts, key=_order)), reason=reason)
    problems = list(_number_of_classes(counts, len(train.values), kind, asked, column))
    if not problems:  # an identifier taken for a label would be "unseen" in every row
        problems = [*_doubtful(usable, counts, kind, asked, column), *unseen(usable, labels.names, column)]
    if odd and len(counts) < 2:
        problems = []  # the other classes may be among what is odd
    return labels, [*odd, *problems]


def _numbered(known: Labels, columns: Mapping[str, LabelColumn]) -> Labels:
    """transformers calls labels without a name LABEL_0, LABEL_1 ...: they are the numbers 0, 1 ... where the
    rows have these."""
    if known.names != tuple(f"LABEL_{i}" for i in range(len(known.names))):
        return known
    numbers = tuple(str(i) for i in range(len(known.names)))
    found = {name for labels in columns.values() for value in labels.values for name in classes_in(value)}
    return replace(known, names=numbers) if found <= set(numbers) else known


def classes_in(value: Any) -> list[str]:
    """The names of the classes in one label: one, or those of a list (each once)."""
    return (
        list(dict.fromkeys(class_name(v) for v in value))
        if isinstance(value, list | tuple)
        else [class_name(value)]
    )


def class_name(value: Any) -> str:
    """A label as a class name: text without outer blanks, true and false, whole numbers without a point."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def to_targets(values: Sequence[Any], labels: Labels, separator: str | None) -> list[Any]:
    """Labels to what the model is trained on: class numbers, lists of class numbers, or floats."""
    if labels.problem_type == REGRESSION:
        return [float(v) for v in values]
    number = {name: i for i, name in enumerate(labels.names)}
    found = [classes_in(_parts(v, separator)) for v in values]
    if labels.problem_type == SINGLE:
        return [number[names[0]] for names in found]
    return [sorted(number[name] for name in names) for names in found]


def unseen(columns: Mapping[str, LabelColumn], names: Sequence[str], column: str) -> Iterator[Problem]:
    """Labels of any split that are not among ``names``, with counts and rows."""
    known = set(names)
    for split, labels in columns.items():
        found: dict[str, list[Place]] = {}
        for value, place in zip(labels.values, labels.places, strict=True):
            for name in classes_in(value):
                if name not in known:
                    found.setdefault(name, []).append(place)
        if not found:
            continue
        shown = "; ".join(f"{name[:40]} in {_rows(places)}" for name, places in list(found.items())[:SHOWN])
        more = f" and {len(found) - SHOWN} more labels" if len(found) > SHOWN else ""
        hint = did_you_mean(next(iter(found)), names)
        yield Problem(
            setting="data.columns.label",
            message=(
                f"expected only labels that the training rows have, found others in {split}:"
                f" {shown}{more}{hint}"
            ),
            fix=(
                f"correct them, or add training rows with them; the known labels are {_listed(names)} (column"
                f" {column})"
            ),
        )


def _parts(value: Any, separator: str | None) -> Any:
    """A text with several labels as a list, also one that is written as in JSON or Python (what pandas makes
    of lists in a CSV file); numpy arrays and tuples as lists; a missing value is no label, where there may be
    several."""
    if separator is not None:
        if value is None:
            return []
        if isinstance(value, str):
            return [part.strip() for part in value.split(separator) if part.strip()]
    if isinstance(value, str) and value.strip()[:1] == "[" and value.strip()[-1:] == "]":
        try:
            found = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            return value
        return found if isinstance(found, list) else value
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, tuple | set | frozenset) else value


def _sort_of(value: Any) -> str:
    """The kind of a label as messages call it."""
    if isinstance(value, list):
        inner = sorted(
            {"fraction" if isinstance(v, float) and not v.is_integer() else _sort_of(v) for v in value}
        )
        return f"list of {' and '.join(inner)}" if inner else EMPTY_LIST
    if isinstance(value, str):
        return "text" if value and not value.isspace() else "blank text"
    if isinstance(value, bool):
        return "true/false"
    return "number" if isinstance(value, int | float) else type(value).__name__


def _of_one_kind(
    columns: Mapping[str, LabelColumn], asked: str, column: str
) -> tuple[dict[str, LabelColumn], list[Problem]]:
    """The rows whose labels are of the most frequent kind that makes sense; the others as problems, with
    their rows."""
    sorts = {split: [_sort_of(value) for value in labels.values] for split, labels in columns.items()}
    counts = Counter(sort for split in sorts.values() for sort in split)
    if asked == REGRESSION:  # numbers written as text are told apart value by value
        right = {"true/false", "number", "text", "blank text"}
    else:
        main = next((sort for sort, _ in counts.most_common() if sort in SORTS), "")
        right = {main, EMPTY_LIST} if main.startswith("list") or not main else {main}
    usable: dict[str, LabelColumn] = {}
    odd: dict[str, list[tuple[Any, Place]]] = {}
    for split, labels in columns.items():
        rows = list(zip(labels.values, labels.places, sorts[split], strict=True))
        kept = [(value, place) for value, place, sort in rows if sort in right]
        usable[split] = LabelColumn([value for value, _ in kept], [place for _, place in kept])
        for value, place, sort in rows:
            if sort not in right:
                odd.setdefault(sort, []).append((value, place))
    beside = " and ".join(
        f"{sort} in {counts[sort]:,} rows" for sort in counts if sort in right and sort != EMPTY_LIST
    )
    problems = [
        Problem(
            setting="data.columns.label",
            message=(
                f"expected labels of one kind in column {column}, found {beside or 'no usable one'}, and"
                f" {sort} in {_valued(found)}"
            ),
            fix="write them all in one way: as texts, whole numbers, true and false, or lists of these",
        )
        for sort, found in sorted(odd.items(), key=lambda item: -len(item[1]))[:SHOWN]
    ]
    return usable, problems


def _joined(
    texts: Sequence[tuple[str, Place]], classes: Collection[str]
) -> tuple[str, list[tuple[str, Place]]] | None:
    """A sign and the texts that it cuts into two or more parts which all are labels of other rows by
    themselves."""
    for sign in (",", ";", "|"):
        found = [
            (text, place)
            for text, place in texts
            if len(parts := [part.strip() for part in text.split(sign)]) > 1
            and all(part in classes for part in parts)
        ]
        if found:
            return sign, found
    return None


def _doubtful(
    columns: Mapping[str, LabelColumn], counts: Mapping[str, int], kind: str, asked: str, column: str
) -> Iterator[Problem]:
    """What is hardly meant: a few numbers among words, one number or word written in two ways, 0 and 1 in
    place of labels.

    It is not said where the kind of problem was set by hand.
    """
    if asked != "auto":
        return
    by_hand = f"correct them; if it is right: --problem_type {kind}"
    train = columns["train"].values
    if kind == MULTI:
        widths = {len(value) for value in train}
        if (
            len(widths) == 1
            and set(counts) in ({"0", "1"}, {"false", "true"})
            and any(len(classes_in(v)) < len(v) for v in train)
        ):
            yield Problem(
                setting="data.columns.label",
                message=(
                    f"expected the labels that a row has in its list, found {' and '.join(counts)} for each"
                    f" of {widths.pop()} labels in column {column}"
                ),
                fix="write the names or numbers of those that are present, such as [0, 3]",
            )
        return
    texts = [
        (v, place)
        for c in columns.values()
        for v, place in zip(c.values, c.places, strict=True)
        if isinstance(v, str)
    ]
    joined = _joined(texts, counts)
    if joined is not None:
        sign, found = joined
        yield Problem(
            setting="data.columns.label",
            message=(
                f"expected one label per row in column {column}, found texts that join several labels by"
                f" {sign!r} in {_valued(found)}"
            ),
            fix=(
                f'name what stands between them: --label_separator "{sign}"; if it is right: --problem_type'
                f" {kind}"
            ),
        )
        return
    words = [(v, place) for v, place in texts if _number(v) is None]
    numbers = [(v, place) for v, place in texts if (n := _number(v)) is not None and not n.is_integer()]
    if words and numbers:
        (many, most), (few, least) = sorted(
            [("words", words), ("numbers", numbers)], key=lambda item: -len(item[1])
        )
        yield Problem(
            setting="data.columns.label",
            message=(
                f"expected labels of one kind in column {column}, found {many} in {len(most):,} rows and"
                f" {few} in {_valued(least)}"
            ),
            fix=by_hand,
        )
    written: dict[float | str, list[str]] = {}
    for name in counts:  # 1 and 1.0, Sport and sport; letters may be meant as such
        number = _number(name)
        written.setdefault(
            number if number is not None else normalized(name) if len(name) > 1 else name, []
        ).append(name)
    twice = [" and ".join(names) for names in written.values() if len(names) > 1]
    if twice:
        message = (
            f"expected each class written in one way in column {column}, found {'; '.join(twice[:SHOWN])}"
        )
        yield Problem(setting="data.columns.label", message=message, fix=by_hand)


def _tell(values: Sequence[Any]) -> tuple[ProblemType, str]:
    """Kind of problem of labels that are all of one kind, and the reason."""
    if isinstance(values[0], list):
        return MULTI, "each row has a list of labels"
    numbers = [_number(value) for value in values]
    if all(number is not None for number in numbers):
        broken = next((number for number in numbers if number is not None and not number.is_integer()), None)
        if broken is not None:
            return REGRESSION, f"the labels are numbers that are not whole, such as {broken:g}"
        return SINGLE, "each row has one label, a whole number"
    return SINGLE, f"each row has one label, {'true or false' if isinstance(values[0], bool) else 'a text'}"


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _not_numbers(columns: Mapping[str, LabelColumn], column: str) -> Iterator[Problem]:
    for split, labels in columns.items():
        wrong = [
            (value, place)
            for value, place in zip(labels.values, labels.places, strict=True)
            if (number := _number(value)) is None or not math.isfinite(number)
        ]
        if wrong:
            message = (
                f"expected numbers for regression in column {column}, found others in {split}, in"
                f" {_valued(wrong)}"
            )
            yield Problem(
                setting="data.columns.label",
                message=message,
                fix="correct them, or choose another --problem_type",
            )


def _wrong_kind(columns: Mapping[str, LabelColumn], kind: str, column: str) -> Iterator[Problem]:
    """A problem type set by hand that the labels do not fit."""
    lists = any(isinstance(value, list) for labels in columns.values() for value in labels.values)
    if kind == SINGLE and lists:
        yield Problem(
            setting="problem_type",
            message=f"expected one label per row, found lists in column {column}",
            fix=f"use --problem_type {MULTI}",
        )
    if kind == MULTI and not lists:
        yield Problem(
            setting="problem_type",
            message=f"expected a list of labels per row, found single ones in column {column}",
            fix='if one text holds several, name what stands between them: --label_separator ","',
        )


def _number_of_classes(
    counts: Mapping[str, int], rows: int, kind: str, asked: str, column: str
) -> Iterator[Problem]:
    classes = len(counts)
    if classes < 2 and kind == SINGLE:
        found = f"one ({_listed(list(counts))})" if counts else "none"
        yield Problem(
            setting="data.columns.label",
            message=f"expected at least 2 classes in the training rows, found {found} in column {column}",
            fix="name the label column: --data.columns.label NAME, or add training rows of another class",
        )
        return
    if not classes:
        yield Problem(
            setting="data.columns.label",
            message=f"expected labels in column {column}, found empty lists alone",
            fix="name the label column: --data.columns.label NAME",
        )
    by_hand = asked != "auto" and classes < rows
    if classes <= FEW_CLASSES or by_hand or (classes <= MOST_CLASSES and 3 * classes <= rows):
        return
    once = sum(count == 1 for count in counts.values())
    several = f", {once:,} of them once" if 0 < once < classes else ""
    numbers = all(_number(name) is not None for name in counts)
    fix = "name the label column: --data.columns.label NAME" + (
        ", or use --problem_type regression" if numbers else ""
    )
    yield Problem(
        setting="data.columns.label",
        message=(
            f"expected a few classes, found {classes:,} in {rows:,} training rows{several}: {column} looks"
            f" like an identifier and not like a label (such as {_listed(list(counts))})"
        ),
        fix=fix if asked == kind else f"{fix}; if it is right: --problem_type {kind}",
    )


def _order(name: str) -> tuple[int, float, str]:
    number = _number(name)
    return (1, 0.0, name) if number is None or not math.isfinite(number) else (0, number, name)


def _rows(places: Sequence[Place]) -> str:
    shown = ", ".join(_row(place) for place in places[:SHOWN])
    return (
        f"{len(places):,} row{'s' if len(places) > 1 else ''}"
        f" ({shown}{', ...' if len(places) > SHOWN else ''})"
    )


def _valued(found: Sequence[tuple[Any, Place]]) -> str:
    """As :func:`_rows`, with what stands there."""
    shown = ", ".join(f"{value!r:.40} in {_row(place)}" for value, place in found[:SHOWN])
    return (
        f"{len(found):,} row{'s' if len(found) > 1 else ''} ({shown}{', ...' if len(found) > SHOWN else ''})"
    )


def _row(place: Place) -> str:
    return f"row {place[1]} of {place[0]}"


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(name[:40] for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")
