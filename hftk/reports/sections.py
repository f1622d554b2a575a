"""The sections of a report as plain values, the same for HTML and Markdown: scores, curves, samples, data
facts, times.

Nothing here knows a task: it goes by what a record holds, whatever the names of its scores, samples and
facts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hftk.reports import wording
from hftk.reports.charts import Axis, Chart, Point, axis, chart, curve
from hftk.reports.record import RunRecord, plain
from hftk.reports.wording import number
from hftk.task import Score

MOST_SAMPLES = 20
LONGEST_TEXT = 2000
EVAL = "eval_"
MOST_CURVES = 8
SPLITS = ("train", "validation", "test", "rows")
DIGEST = re.compile(r"[0-9a-f]{32,}")
INPUTS = ("prompt", "text", "source", "question", "context", "text_pair")
OUTPUTS = (
    "prediction",
    "predicted",
    "generated",
    "continuation",
    "output",
    "answer",
    "translation",
    "summary",
)
REFERENCES = ("reference", "label", "target", "expected")


def passes(record: RunRecord) -> str:
    """ "2 epochs, 1,204 steps, 1.2 million tokens"."""
    epochs, steps, tokens = wording.training_done(record)
    parts = [wording.plural(round(epochs, 2), "epoch")] if epochs else []
    parts += [wording.plural(steps, "step")] if steps else []
    return ", ".join(parts + ([f"{wording.about(tokens)} tokens"] if tokens else []))


def about_model(record: RunRecord) -> list[str]:
    """What was trained, for the line below the title."""
    everything, trained = wording.parameters(record)
    parts = []
    if everything:
        share = f", {wording.about(trained)} of them trained" if trained and trained != everything else ""
        parts.append(f"{wording.about(everything)} parameters{share}")
    return parts + ([passes(record)] if record.history else [])


def evaluations(record: RunRecord) -> list[dict[str, Any]]:
    """The last 50 points with a score of the validation split, without the columns that are empty in all of
    them."""
    points = [p for p in record.history if any(str(k).startswith(EVAL) and p[k] is not None for k in p)][-50:]
    kept = [
        key
        for key in dict.fromkeys(k for p in points for k in p)
        if any(p.get(key) is not None for p in points)
    ]
    return [{key: point.get(key) for key in kept} for point in points]


def settings(values: Mapping[str, Any]) -> str:
    """Settings as YAML, "" for none."""
    import yaml

    return (
        str(yaml.safe_dump(plain(values), sort_keys=False, allow_unicode=True, width=100)) if values else ""
    )


def machine(record: RunRecord) -> dict[str, Any]:
    facts = {**record.hardware, "processes": record.processes, "versions": record.versions}
    return {**facts, "git": record.git} if record.git else facts


def tiles(record: RunRecord) -> list[dict[str, str]]:
    """The few numbers at the top: label, value, note."""
    tiles = []
    if main := record.main_score:
        way = "↑ higher is better" if main.higher_is_better else "↓ lower is better"
        interval = wording.interval_text(main)
        unit = "" if main.unit == "%" else main.unit
        value = wording.value_text(main) if not unit else number(main.value)
        tiles.append(_tile(wording.score_title(main), value, unit, interval, way, kind="main"))
        for other, name in (
            (next(iter(record.related(main, "before")), None), "Before training"),
            (wording.best(record.related(main, "baseline:")), "Best baseline"),
        ):
            if other:
                note = (
                    wording.system(other)
                    if other.when.startswith("baseline")
                    else wording.interval_text(other)
                )
                tiles.append(_tile(name, number(other.value), note))
    train = f"training {wording.duration(record.seconds['train'])}" if record.seconds.get("train") else ""
    tiles.append(_tile("Time", wording.duration(record.seconds.get("total")), train))
    if record.tokens_per_second:
        tokens = wording.training_done(record)[2]
        trained = f"{wording.about(tokens)} in all" if tokens else ""
        tiles.append(_tile("Tokens per second", number(round(record.tokens_per_second)), trained))
    if record.peak_memory_bytes:
        note = wording.plural(record.processes, "process", "es")
        tiles.append(_tile("Peak memory", wording.size(record.peak_memory_bytes), note))
    return tiles


def _tile(label: str, value: str, *notes: str, kind: str = "") -> dict[str, Any]:
    return {
        "label": label[:1].upper() + label[1:],
        "value": value,
        "notes": [n for n in notes if n],
        "kind": kind,
    }


def metrics(record: RunRecord) -> list[dict[str, Any]]:
    """One block per score and split, the main score's first; the scores of a block share an axis."""
    blocks: dict[tuple[str, str], list[Score]] = {}
    if main := record.main_score:
        blocks[main.name, main.split] = []
    for score in record.scores:
        blocks.setdefault((score.name, score.split), []).append(score)
    return [_metric(scores) for scores in blocks.values()]


def _metric(scores: list[Score]) -> dict[str, Any]:
    after = [s for s in scores if s.when == "after"]
    before = [s for s in scores if s.when == "before"]
    others = [s for s in scores if s.when not in ("after", "before")]
    others.sort(key=lambda s: -s.value if s.higher_is_better else s.value)
    made = metric([(wording.system(s), s) for s in (*after, *before, *others)])
    for row in made["rows"]:
        row["system"] = row["system"][:1].upper() + row["system"][1:]
    return made


def metric(systems: Sequence[tuple[str, Score]]) -> dict[str, Any]:
    """One score of several systems (name, score) on one axis; the table and bars of a page."""
    scores = [score for _, score in systems]
    ends = [v for s in scores for v in (s.value, *(s.interval or ())) if math.isfinite(v)]
    scale = axis(ends, most=4) if ends else None
    return {
        "name": scores[0].name,
        "title": wording.score_title(scores[0]),
        "unit": scores[0].unit,
        "higher": scores[0].higher_is_better,
        "axis": scale,
        "rows": [_row(name, score, scale) for name, score in systems],
        "signatures": _signatures(systems),
    }


def _row(name: str, score: Score, scale: Axis | None) -> dict[str, Any]:
    """One score with the places of its value and interval on the axis, in thousandths."""
    drawn = scale is not None and math.isfinite(score.value)
    bar = [scale.place(end) for end in score.interval] if scale and drawn and score.interval else None
    return {
        "system": name,
        "when": score.when.partition(":")[0],
        "value": number(score.value),
        "interval": wording.interval_text(score),
        "n": wording.exact(score.n),
        "dot": scale.place(score.value) if scale and drawn else None,
        "bar": bar,
    }


def _signatures(scored: Sequence[tuple[str, Score]]) -> list[tuple[str, str]]:
    """(systems, signature), each signature once."""
    systems: dict[str, list[str]] = {}
    for name, score in scored:
        if score.signature:
            systems.setdefault(score.signature, []).append(name)
    return [("" if len(systems) == 1 else ", ".join(names), text) for text, names in systems.items()]


def charts(record: RunRecord) -> list[Chart]:
    train, judged = curve(record.history, "loss"), curve(record.history, "eval_loss")
    rate, norm = curve(record.history, "learning_rate"), curve(record.history, "grad_norm")
    least = min(judged, key=lambda p: p[1], default=None)
    note = f"lowest validation loss {number(least[1])} at step {least[0]:,.0f}" if least else ""
    found = (
        chart(
            "loss",
            "Loss",
            {"training": ("train", train), "validation": ("eval", judged)},
            "nats per item",
            note,
        ),
        *_validation_charts(record),
        chart("rate", "Learning rate", {"learning rate": ("rate", rate)}, linear=True),
        chart("norm", "Gradient norm", {"gradient norm": ("norm", norm)}, "before clipping"),
    )
    return [c for c in found if c]


def _validation_charts(record: RunRecord) -> list[Chart | None]:
    """The scores of the validation split but its loss: those within -1 and 1 share a chart, others have one
    each."""
    names = dict.fromkeys(
        str(k) for p in record.history for k in p if str(k).startswith(EVAL) and k != "eval_loss"
    )
    curves = {name: points for name in names if (points := curve(record.history, name))}
    together = {
        name: points for name, points in curves.items() if all(abs(value) <= 1 for _, value in points)
    }
    groups = [("Validation scores", dict([*together.items()][:MOST_CURVES]))] if len(together) > 1 else []
    alone = {name: points for name, points in curves.items() if not groups or name not in together}
    groups += [
        (f"Validation {_score_name(name)}", {name: points}) for name, points in [*alone.items()][:MOST_CURVES]
    ]
    return [
        chart(
            f"scores-{i}",
            title,
            {_score_name(n): (f"score-{k}", points) for k, (n, points) in enumerate(some.items())},
            note=_best_point(record, *next(iter(some.items()))),
            linear=True,
        )
        for i, (title, some) in enumerate(groups)
    ]


def _score_name(key: str) -> str:
    return wording.words(key.removeprefix(EVAL))


def _best_point(record: RunRecord, key: str, points: list[Point]) -> str:
    """ "highest accuracy 0.8875 at step 1,204", where a score of the record tells which way is better."""
    known = next((s for s in record.scores if EVAL + s.name == key), None)
    if known is None:
        return ""
    step, value = (max if known.higher_is_better else min)(points, key=lambda p: p[1])
    way = "highest" if known.higher_is_better else "lowest"
    return f"{way} {_score_name(key)} {number(value)} at step {step:,.0f}"


def stages(record: RunRecord) -> list[dict[str, Any]]:
    """Stages with their share of the total; what no stage accounts for is called other."""
    parts = {k: v for k, v in record.seconds.items() if k != "total" and v}
    total = max(record.seconds.get("total") or 0, sum(parts.values()))
    if not parts or total <= 0:
        return []
    parts["other" if "load" in parts else "loading and the rest"] = total - sum(parts.values())
    colors = {name: i for i, name in enumerate(("load", "train", "evaluate", "save"))}
    return [
        {"name": name, "seconds": value, "share": value / total, "color": colors.get(name, len(colors))}
        for name, value in parts.items()
        if value >= 0.005 * total
    ]


def sample_view(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample as fields with roles; ``match`` tells whether a short prediction equals its reference."""
    prompt = str(sample.get("prompt") or "")
    fields = [_field(str(key), value, prompt) for key, value in sample.items() if value is not None]
    order = ("input", "output", "before", "reference", "other")
    fields.sort(key=lambda f: order.index(f["role"]))
    said = next((f["text"] for f in fields if f["role"] == "output"), None)
    wanted = next((f["text"] for f in fields if f["role"] == "reference"), None)
    written = bool({"prompt", "source"} & set(sample))  # a text can be right in other words
    short = said is not None and wanted is not None and len(said) <= 40 and not written
    groups = {"inputs": ("input",), "outputs": ("output", "before", "reference"), "others": ("other",)}
    parts = {name: [f for f in fields if f["role"] in roles] for name, roles in groups.items()}
    return {**parts, "fields": fields, "match": said == wanted if short else None}


def _field(key: str, value: Any, prompt: str) -> dict[str, Any]:
    name = key.removesuffix("_before")
    if name in REFERENCES:
        role = "reference"
    elif name in OUTPUTS or (name == "text" and prompt):
        role = "before" if name != key else "output"
    else:
        role = "input" if name in INPUTS else "other"
    text = fact_text(key, value)
    if role in ("output", "before") and prompt and text.startswith(prompt):
        text = text[len(prompt) :]
    text = text.strip()
    cut = len(text) > LONGEST_TEXT
    label = f"{wording.words(name)} before training" if name != key else wording.words(key)
    return {"label": label, "text": text[:LONGEST_TEXT] + ("…" if cut else ""), "role": role}


def data_view(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as: one table with a column per split, the counts that are 0 in all of them, the proof, and
    the rest."""
    splits = [name for name in SPLITS if any(isinstance(v, Mapping) and name in v for v in facts.values())]
    rows: dict[str, dict[str, Any]] = {}
    rest: dict[str, Any] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping) and value and set(value) <= set(splits):
            for split, fact in value.items():
                for name, leaf in _leaves(key, fact):
                    rows.setdefault(name, {})[split] = leaf
        elif key != "proof" or not isinstance(value, Mapping) or value.get("overlap") != 0:
            rest[key] = value
    zero = [name for name, row in rows.items() if all(not leaf for leaf in row.values())]
    table = {name: {s: row.get(s) for s in splits} for name, row in rows.items() if name not in zero}
    return {"table": table, "zero": [fact_name(n) for n in zero], "proof": facts.get("proof"), "rest": rest}


def _leaves(name: str, fact: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(fact, Mapping):
        yield name, fact
        return
    for key, value in fact.items():
        yield from _leaves(f"{name} {key}" if ":" in name else f"{name}: {key}", value)


def fact_text(key: Any, value: Any) -> str:
    """A fact as text: byte counts in units, lists joined (the first 20 entries)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and str(key).endswith("bytes"):
        return wording.size(value)
    if isinstance(value, list):
        text = ", ".join(wording.exact(v) for v in value[:20]) or "none"
        return text + (f" and {len(value) - 20} more" if len(value) > 20 else "")
    return (
        f"{value[:12]}…"
        if isinstance(value, str) and key != "commit" and DIGEST.fullmatch(value)
        else wording.exact(value)
    )


def fact_name(key: Any) -> str:
    return wording.words(str(key).removesuffix("_bytes"))


def is_scalar(value: Any) -> bool:
    return not isinstance(value, (Mapping, list)) or (
        isinstance(value, list) and not any(isinstance(v, (Mapping, list)) for v in value)
    )


def is_table(value: Any) -> bool:
    """Whether every entry is a dictionary of plain facts, so that entries make rows and their keys
    columns."""
    entries = list(value.values() if isinstance(value, Mapping) else value)
    return bool(entries) and all(
        isinstance(e, Mapping) and e and all(map(is_scalar, e.values())) for e in entries
    )


def table_of(value: Mapping[str, Any] | list[Mapping[str, Any]]) -> dict[str, Any]:
    """Heads and rows of text; the first cell of a row is its name where ``value`` gives one."""
    named = isinstance(value, Mapping)
    entries = list(value.items() if isinstance(value, Mapping) else enumerate(value))
    columns = list(dict.fromkeys(key for _, entry in entries for key in entry))
    rows = [
        (name, [fact_text(c, entry[c]) if c in entry else "" for c in columns]) for name, entry in entries
    ]
    kinds = ["number" if any(is_number(e.get(c)) for _, e in entries) else "" for c in columns]
    return {"named": named, "head": list(zip(columns, kinds, strict=True)), "rows": rows}


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
