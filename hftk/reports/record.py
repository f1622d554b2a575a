"""RunRecord: everything worth keeping about a run, as one JSON file.

``record`` joins what the stages returned, ``save_record`` writes it so that a reader never meets half a file,
and ``load_record`` reads this version's records and older ones. Nothing private goes in
(:mod:`hftk.launch.environment`).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from hftk.config import InputError, Problem
from hftk.console import clear_notes, noted
from hftk.launch import exits
from hftk.launch.environment import command_line, environment, private, redact
from hftk.launch.files import write_atomically
from hftk.launch.output_folder import read_status
from hftk.redaction import redact as redact_secrets
from hftk.task import Score
from hftk.version import __version__

if TYPE_CHECKING:
    from hftk.evaluation.evaluate import Evaluation
    from hftk.task import Splits
    from hftk.training.trained import Trained

RECORD = "record.json"
SECONDS = ("load", "train", "evaluate", "save", "total")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run: what was asked for, what happened, what came out. Two fields have no default: older records
    load."""

    hftk: str
    """Version of hftk that ran."""
    task: str
    """As in :class:`hftk.task.Task`: causal_lm, classification, summarization, translation."""
    status: str = "done"
    """done, stopped (on request, can be resumed) or failed."""
    started: str | None = None
    """ISO 8601 in UTC."""
    finished: str | None = None
    """ISO 8601 in UTC."""
    command: str = ""
    """What was typed, with secrets redacted and the home folder as ``~``; "" for a run from Python."""
    config: dict[str, Any] = field(default_factory=dict)
    """The merged settings, as in ``config.yaml``."""
    choices: list[str] = field(default_factory=list)
    """Automatic choices with their reasons, one line each."""
    model: dict[str, Any] = field(default_factory=dict)
    """Facts about the weights: parameters, architecture, context, vocabulary, where they came from, dtype."""
    data: dict[str, Any] = field(default_factory=dict)
    """What was read, changed and dropped, with counts, and the proof that the splits are disjoint."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Points of the curves: step, epoch, loss, eval_loss (nats per item), learning_rate, grad_norm, tokens,
    seconds; the task's other scores on the validation split as ``eval_<name>``."""
    scores: list[Score] = field(default_factory=list)
    """The first one with ``when="after"`` is the main score."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """A few inputs with what the model made of them; ``<key>_before`` holds what it made of them before
    training."""
    analysis: list[dict[str, Any]] = field(default_factory=list)
    """What the task found out beyond scores, as sections that :mod:`hftk.reports.analysis` shows: ``title``,
    ``kind`` (matrix, table, examples, reliability, scatter or facts), what that kind holds, and perhaps
    ``note`` and ``split``."""
    seconds: dict[str, float | None] = field(default_factory=dict)
    """Wall time: load, train, evaluate, save, total."""
    tokens_per_second: float | None = None
    """Non-padding tokens trained on, over training time without evaluation and saving."""
    peak_memory_bytes: int | None = None
    """Most memory held at once by the main process (on a GPU: of the device)."""
    processes: int = 1
    """Processes that trained together."""
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    git: dict[str, Any] | None = None
    """``commit`` and ``dirty`` of the working directory, or None outside a repository."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Keys of the file that this version does not know; they are written back as they were."""

    @property
    def main_score(self) -> Score | None:
        """The score that the run is judged by: the first one after training."""
        return next((s for s in self.scores if s.when == "after"), None)

    def related(self, score: Score, when: str) -> list[Score]:
        """Scores of the same name on the same split whose ``when`` starts with ``when``."""
        return [
            s
            for s in self.scores
            if (s.name, s.split) == (score.name, score.split) and s.when.startswith(when)
        ]

    def test_against(self, rival: Score) -> dict[str, Any] | None:
        """The paired test of the main score against a baseline's, as an analysis table tells it:
        ``difference`` (model - baseline, ``value`` and 95 % ``interval``) and ``p_value``; None where there
        is none."""
        tables = [s.get("rows") for s in self.analysis if isinstance(s, Mapping) and s.get("kind") == "table"]
        lines = [
            line for rows in tables if isinstance(rows, list) for line in rows if isinstance(line, Mapping)
        ]
        fits = [line for line in lines if (line.get("when"), line.get("score")) == (rival.when, rival.name)]
        return next((dict(line) for line in fits if line.get("p_value") is not None), None)

    def to_dict(self) -> dict[str, Any]:
        """As nested plain values; numbers are left as they are (:func:`plain` makes them fit for JSON)."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {**known, "scores": [s.to_dict() for s in self.scores], **self.extra}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunRecord:
        """The record that ``values`` describe: unknown keys go to ``extra``, missing ones get their defaults.

        Raises InputError where a value has the wrong type or one of ``hftk`` and ``task`` is missing.
        """
        missing = [name for name in ("hftk", "task") if not isinstance(values.get(name), str)]
        wrong = [
            n for n, kind in CONTAINERS.items() if not isinstance(values.get(n, kind()), (kind, type(None)))
        ]
        if missing or wrong:
            raise InputError(
                *(
                    _problem(f"expected a record with a text under {n!r}, found {values.get(n)!r}")
                    for n in missing
                ),
                *(
                    _problem(f"expected a {CONTAINERS[n].__name__} under {n!r}, found {values[n]!r:.80}")
                    for n in wrong
                ),
            )
        known = {f.name for f in fields(cls)} - {"extra"}
        given = {k: v for k, v in values.items() if k in known and not (v is None and k in CONTAINERS)}
        given["scores"] = [_score(s) for s in values.get("scores") or []]
        return cls(**given, extra={k: v for k, v in values.items() if k not in known})


CONTAINERS: dict[str, type] = {
    "config": dict,
    "choices": list,
    "model": dict,
    "data": dict,
    "history": list,
    "scores": list,
    "samples": list,
    "analysis": list,
    "seconds": dict,
    "hardware": dict,
    "versions": dict,
}


def record(
    config: Any,
    splits: Splits | None,
    trained: Trained | None,
    before: Evaluation | None,
    after: Evaluation | None,
    baselines: Sequence[Score] = (),
    *,
    task: str | None = None,
    status: str = "done",
    started: datetime | None = None,
    command: str | None = None,
    processes: int | None = None,
) -> RunRecord:
    """Join what the stages returned into the record of the run; any may be None (``hftk evaluate`` trains
    nothing).

    ``task`` defaults to the name in the config's class (``CausalLMConfig`` gives ``causal_lm``), ``started``
    to what ``status.json`` says about this process, else to the end less the known seconds, ``command`` to
    what started this process, ``processes`` to the launcher's ``WORLD_SIZE``.
    """
    finished = datetime.now(UTC)
    started = started or _started(config)
    seconds = _seconds(trained, before, after, (finished - started).total_seconds() if started else None)
    begun = started or finished - timedelta(seconds=seconds["total"])
    made = RunRecord(
        hftk=__version__,
        task=task or _task_name(config),
        status=status,
        started=_iso(begun),
        finished=_iso(finished),
        command=command_line() if command is None else private(command),
        config=redact(plain(config)),
        choices=[private(line) for line in dict.fromkeys([*noted(), *getattr(trained, "choices", [])])],
        model=redact(plain(getattr(trained, "model_facts", {}))),
        data=redact(plain(_data(splits, trained, after))),
        history=[dict(point) for point in getattr(trained, "history", [])],
        scores=[s for evaluation in (before, after) if evaluation for s in evaluation.scores]
        + list(baselines),
        samples=_samples(before, after),
        analysis=[plain(s) for stage in (after, trained) for s in getattr(stage, "analysis", [])],
        seconds=seconds,
        tokens_per_second=getattr(trained, "tokens_per_second", None),
        peak_memory_bytes=getattr(trained, "peak_memory_bytes", None),
        processes=processes or exits.processes(),
        **environment(),
    )
    clear_notes()  # a notebook's next run makes its own choices
    return made


def _started(config: Any) -> datetime | None:
    """When :func:`hftk.launch.run` began this very process's run; None in a notebook or a test."""
    status = read_status(Path(getattr(config, "output", None) or ""))
    if not status or status["pid"] != os.getpid():
        return None
    try:
        return datetime.fromisoformat(str(status.get("started")))
    except ValueError:
        return None


def _data(splits: Any, trained: Any, after: Any) -> dict[str, Any]:
    """Facts about the rows, and about the features made of them for training and for judging."""
    encoded = {"training": getattr(trained, "data_facts", None), "judged": getattr(after, "facts", None)}
    return {**(splits.facts if splits else {}), **{name: facts for name, facts in encoded.items() if facts}}


def _seconds(trained: Any, before: Any, after: Any, elapsed: float | None) -> dict[str, Any]:
    """Wall time by stage: the evaluations before and after stand outside ``fit``, so their time is added
    here; ``load`` is what the known stages leave of the whole: imports, reading, encoding, baselines."""
    seconds = {name: float(getattr(trained, "seconds", {}).get(name) or 0) for name in SECONDS}
    judged = sum(float(e.seconds) for e in (before, after) if e)
    seconds["evaluate"] += judged
    total = seconds.pop("total") + judged if elapsed is None else elapsed
    seconds["load"] += max(0.0, total - sum(seconds.values()))
    seconds = {name: round(value, 3) for name, value in seconds.items()}
    return {**seconds, "total": round(sum(seconds.values()), 3)}


def _samples(before: Any, after: Any) -> list[dict[str, Any]]:
    """The samples after training; what the model said before stands beside it as ``<key>_before`` where it
    differs."""
    new = [dict(s) for s in getattr(after or before, "samples", [])]
    old = [dict(s) for s in getattr(before, "samples", [])] if after and before else []
    if [set(s) for s in new] != [set(s) for s in old]:
        return new
    return [{**n, **{f"{k}_before": o[k] for k in n if o[k] != n[k]}} for n, o in zip(new, old, strict=True)]


def save_record(record: RunRecord, folder: str | Path) -> Path:
    """Write ``folder/record.json`` (made if absent) and return its path. Strict JSON: NaN and infinity become
    null."""
    values = plain(record.to_dict())
    kept = ("git", "samples")  # the names of commits, and rows of the data
    values = {n: v if n in kept else redact_secrets(v, n, by_name=False) for n, v in values.items()}
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, indent=1)
    return write_text(Path(folder) / RECORD, text + "\n")


def load_record(path: str | Path) -> RunRecord:
    """Read a record from a run's folder or the file itself; InputError where there is none or it cannot be
    read."""
    path = Path(path).expanduser()
    file = path / RECORD if path.is_dir() else path
    if not file.is_file():
        raise InputError(_not_found(path))
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        found = (
            f"expected JSON in {file}, found a mistake in line {error.lineno}, column {error.colno}:"
            f" {error.msg}"
        )
        raise InputError(_problem(found, "run again, or name another folder")) from None
    except UnicodeDecodeError as error:
        raise InputError(
            _problem(f"expected UTF-8 in {file}, found byte {error.object[error.start]:#04x}")
        ) from None
    if not isinstance(values, Mapping):
        raise InputError(_problem(f"expected one JSON object in {file}, found a {type(values).__name__}"))
    try:
        return RunRecord.from_dict(values)
    except InputError as error:
        problems = [dataclasses.replace(p, message=f"{file}: {p.message}") for p in error.problems]
        raise InputError(*problems) from None


def write_text(path: Path, text: str) -> Path:
    """Write a UTF-8 file whole or not at all, into a folder that is made if absent; returns ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
    return path


def plain(value: Any) -> Any:
    """``value`` as JSON knows it: NaN and infinity to None, numpy to numbers and lists, what is unknown to
    text."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        # Half a surrogate pair, as cut-off generated text may hold, cannot be written as UTF-8.
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [plain(item) for item in value]
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, datetime):
        return value.isoformat()
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def _not_found(path: Path) -> Problem:
    """What to say where no record is: the runs below or beside ``path`` are named."""
    if path.is_dir():
        runs = sorted(str(file.parent) for file in path.glob(f"*/{RECORD}"))
        fix = (
            f"name one of: {', '.join(runs[:5])}"
            if runs
            else "name the --output folder of a run that has finished"
        )
        return _problem(f"expected {RECORD} in {path}, found none", fix)
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    fix = (
        f"did you mean {path.with_name(near[0])}?"
        if near
        else "name the --output folder of a run that has finished"
    )
    return _problem(f"expected the folder of a run, found nothing at {path}", fix)


def _problem(message: str, fix: str = "") -> Problem:
    return Problem(setting="", message=message, fix=fix)


def _score(values: Any) -> Score:
    """A score from its JSON form; a value that could not be written as a number comes back as NaN."""
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        raise InputError(_problem(f"expected a score with a name under 'scores', found {values!r:.80}"))
    given: dict[str, Any] = {"n": 0, "higher_is_better": True, "value": None}
    given |= {f.name: values[f.name] for f in fields(Score) if f.name in values}
    ends = given.get("interval") or (None,)
    numbers = [given["value"], *(ends if isinstance(ends, list | tuple) else [ends])]
    if not all(number is None or isinstance(number, int | float) for number in numbers):
        raise InputError(_problem(f"expected numbers in the score {values['name']}, found {values!r:.80}"))
    given["interval"] = None if None in ends else tuple(ends)
    return Score(**{**given, "value": math.nan if given["value"] is None else given["value"]})


def _task_name(config: Any) -> str:
    """``CausalLMConfig`` to ``causal_lm``."""
    name = type(config).__name__.removesuffix("Config")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower() or "run"


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
