"""Numbers, scores and runs in plain words: what reports, model cards and the command line say about a
RunRecord."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from hftk.reports.record import RunRecord
from hftk.task import Score

NOTHING = "–"
TITLES = {
    "causal_lm": "Causal language model",
    "masked_lm": "Masked language model",
    "ner": "Named entity recognition",
    "classification": "Text classification",
}
ACRONYMS = {
    "cpu": "CPU",
    "gpus": "GPUs",
    "ram": "RAM",
    "os": "OS",
    "tfidf": "TF-IDF",
    "f1": "F1",
    "mse": "MSE",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R2",
    "auc": "AUC",
    "mcc": "MCC",
    "ece": "ECE",
    "bleu": "BLEU",
    "chrf": "chrF",
    "chrf++": "chrF++",
    "ter": "TER",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
}
LEVEL = 0.05
"""A difference is called real where chance alone shows it less often than this."""
STEPS = ("thousand", "million", "billion", "trillion")


def number(value: Any, digits: int = 4) -> str:
    """``value`` with about ``digits`` significant digits and thousands grouped: 4,012; 61.31; 0.8875; 2e-5.
    "–" for none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0:
        return "0"
    power = math.floor(
        math.log10(abs(float(f"{value:.{digits - 1}e}")))
    )  # as rounded: 0.99996 is 1.000, not 1.0000
    if power < -3 or power > 8:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:,.{max(0, digits - 1 - power)}f}"


def column(values: Sequence[Any]) -> list[str]:
    """Numbers of one column: shares and coefficients with four decimals each, so that they align; else
    :func:`number`."""
    floats = [abs(v) for v in values if isinstance(v, float) and math.isfinite(v)]
    aligned = all(v == 0 or 5e-4 <= v <= 1 for v in floats)
    return [
        f"{v:.4f}" if aligned and isinstance(v, float) and math.isfinite(v) else number(v) for v in values
    ]


def exact(value: Any) -> str:
    """A setting or fact as it was given: floats that are round stay round (0.05, not 0.05000)."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return number(value) if value is None or isinstance(value, (int, float)) else str(value)


def about(value: float) -> str:
    """A large count in words: 823 thousand, 1.24 million."""
    for step in range(len(STEPS), 0, -1):
        if value >= 1000**step * 0.9995:
            return f"{value / 1000**step:.3g} {STEPS[step - 1]}"
    return number(int(value))


def duration(seconds: float | None) -> str:
    """Wall time for people: 0.8 s, 43 s, 2 min 31 s, 1 h 04 min."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def moment(text: str | None) -> str:
    """An ISO time as 21 Nov 2026, 22:43 UTC."""
    try:
        time = datetime.fromisoformat(text or "")
    except ValueError:
        return text or ""
    return f"{time.day} {time:%b %Y, %H:%M}" + (" UTC" if time.utcoffset() is not None else "")


def size(count: float | None) -> str:
    """Bytes in decimal units: 812 MB, 1.31 GB."""
    if count is None or not math.isfinite(count) or count <= 0:
        return NOTHING
    power = min(4, max(0, math.floor(math.log10(count) / 3)))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def words(key: Any) -> str:
    """A key of a dictionary as words: tokens_per_second to "tokens per second", cpu to "CPU"."""
    return " ".join(ACRONYMS.get(word, word) for word in str(key).split("_"))


def plural(count: float, noun: str, ending: str = "s") -> str:
    """ "1 step", "1,204 steps", "0.5 epochs"."""
    whole = int(count) if float(count).is_integer() else count
    return f"{whole:,} {noun}" + ("" if whole == 1 else ending)


def value_text(score: Score) -> str:
    """The value with its unit."""
    return number(score.value) + (f" {score.unit}" if score.unit else "")


def interval_text(score: Score) -> str:
    """ "[58.90, 63.80]", or "" where there is none."""
    return f"[{number(score.interval[0])}, {number(score.interval[1])}]" if score.interval else ""


def score_title(score: Score) -> str:
    """ "test perplexity"."""
    return f"{score.split} {words(score.name)}".strip()


def system(score: Score) -> str:
    """Whose score it is: "before training", "after training", "bigram model", "majority baseline"."""
    kind, _, name = score.when.partition(":")
    if kind != "baseline":
        return f"{score.when} training" if score.when in ("before", "after") else words(score.when)
    name = words(name) or "baseline"
    return (
        name
        if name.endswith(("model", "baseline"))
        else name + (" model" if name.endswith("gram") else " baseline")
    )


def better(one: Score, other: Score) -> bool:
    """Whether ``one`` is strictly better than ``other``, by value."""
    return one.value > other.value if one.higher_is_better else one.value < other.value


def overlap(one: Score, other: Score) -> bool:
    """Whether both have intervals and the intervals share a value: then the difference may be chance."""
    if not one.interval or not other.interval:
        return False
    return one.interval[0] <= other.interval[1] and other.interval[0] <= one.interval[1]


def best(scores: Sequence[Score]) -> Score | None:
    """The best of scores of one name; None of none, and of those that are no number."""
    finite = [s for s in scores if math.isfinite(s.value)]
    return max(finite, key=lambda s: s.value if s.higher_is_better else -s.value, default=None)


def verdict(record: RunRecord) -> str:
    """The main score against the one before and against the best baseline, with its paired test if there is
    one, in one sentence."""
    main = record.main_score
    if main is None:
        return "There is no score: no held-out rows were judged."
    title = score_title(main)
    text = f"{title[:1].upper()}{title[1:]} is {value_text(main)}"
    text += f" {interval_text(main)}" if main.interval else ""
    before = next(iter(record.related(main, "before")), None)
    rival = best(record.related(main, "baseline:"))
    if before or record.history:
        text += " after training"
    if not math.isfinite(main.value):
        return f"{text}: it is not a finite number."
    if before and math.isfinite(before.value):
        text += _moved(main, before)
    if rival:
        test = record.test_against(rival)
        text += _tested(main, rival, test) if test else _against(main, rival)
    return text + "."


def _moved(main: Score, before: Score) -> str:
    if main.value == before.value:
        return ", the same as before"
    text = f", {'up' if main.value > before.value else 'down'} from {number(before.value)} before"
    if overlap(main, before):
        return f"{text} (the intervals overlap)"
    return text if better(main, before) else f"{text}, which was better"


def _against(main: Score, rival: Score) -> str:
    whose = f"the {system(rival)}'s {number(rival.value)}"
    if main.value == rival.value:
        return f", and equal to {whose}"
    good = better(main, rival)
    where = "above" if main.value > rival.value else "below"
    chance = " (the intervals overlap)" if overlap(main, rival) else ""
    return f", {'and' if good else 'but'} {where} {whose}{chance}"


def _tested(main: Score, rival: Score, test: Mapping[str, Any]) -> str:
    """The lead over a baseline (or its lead) with its interval, and whether it is real by the paired test (p
    < 0.05)."""
    whose = f"the {system(rival)}'s {number(rival.value)}"
    if main.value == rival.value:
        return f", and equal to {whose}"
    good = better(main, rival)
    low, high = sorted(
        (1 if main.value > rival.value else -1) * end for end in test["difference"]["interval"]
    )
    lead = f"by {number(abs(main.value - rival.value), 2)} [{number(low, 2)}, {number(high, 2)}]"
    chance = f"(p = {test['p_value']:.2g})"
    if test["p_value"] >= LEVEL:
        return (
            f", {'and' if good else 'but'} {'better' if good else 'worse'} than {whose} {lead}: no real"
            f" difference {chance}"
        )
    return (
        f", {'and' if good else 'but'} {'better' if good else 'worse'} than {whose} {lead}: a real difference"
        f" {chance}"
    )


# --- the run


def task_title(record: RunRecord) -> str:
    """ "Causal language model", "Translation"."""
    return TITLES.get(record.task, words(record.task).capitalize())


def model_name(record: RunRecord) -> str:
    """The pre-trained model's id, or what was made on the spot: "gpt2 (small)"."""
    settings = record.config.get("model") or {}
    if settings.get("name"):
        return str(settings["name"])
    architecture = settings.get("architecture") or record.model.get("architecture") or "a model"
    architecture = re.sub(r"(?<=.)(LMHeadModel|For[A-Z]\w+|Model)$", "", str(architecture))
    return f"{architecture} ({settings['size']})" if settings.get("size") else str(architecture)


def data_name(record: RunRecord) -> str:
    """The data set's id, or the last part of its path (the last two where that is train.jsonl and the
    like)."""
    settings = record.config.get("data") or {}
    given = next((settings[k] for k in ("path", "train", "sample") if settings.get(k)), None)
    if given is None:
        return "rows given from Python"
    path = PurePosixPath(str(given).replace("\\", "/"))
    if path.suffix and path.stem.lower() in ("train", "training") and path.parent.name not in ("", "..", "~"):
        return f"{path.parent.name}/{path.name}"
    hub = len(path.parts) == 2 and not path.suffix and not str(given).startswith((".", "~"))
    return str(path) if hub else path.name or str(path)


def parameters(record: RunRecord) -> tuple[int | None, int | None]:
    """(all, trained) parameters of the model, None where the record does not say."""
    facts = record.model
    found = facts.get("parameters")
    if isinstance(found, dict):
        return found.get("total"), found.get("trained")
    return found, facts.get("trained_parameters", facts.get("parameters_trained"))


def training_done(record: RunRecord) -> tuple[float | None, int | None, int | None]:
    """(epochs, steps, tokens) that were trained on, from the last points of the history that tell them."""

    def last(key: str) -> Any:
        return next((p[key] for p in reversed(record.history) if p.get(key) is not None), None)

    return last("epoch"), last("step"), last("tokens")
