"""The model card: metadata that the Hub understands (model-index, base model, data sets ...) and the text
below them.

The form of the metadata is that of https://github.com/huggingface/hub-docs/blob/main/modelcard.md, made by
``huggingface_hub.ModelCardData``. Every number comes from the run's record.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftk.config import PublishConfig
from hftk.hub.usage import head_of, read_json, usage
from hftk.models.adapter_files import ADAPTER
from hftk.reports import wording
from hftk.reports.markdown import escape, fenced, scores_table, table
from hftk.reports.record import RunRecord
from hftk.reports.sections import passes, sample_view
from hftk.task import Score

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

PIPELINES = {
    "CausalLM": "text-generation",
    "SequenceClassification": "text-classification",
    "Seq2SeqLM": "text2text-generation",
    "TokenClassification": "token-classification",
    "MaskedLM": "fill-mask",
    "QuestionAnswering": "question-answering",
}
OF_TASKS = {"summarization": "summarization", "translation": "translation"}
"""Tasks whose pipeline says more than that of the model's head."""
METRICS = (
    (r"f1.*", "f1"),
    (r"rouge.*", "rouge"),
    (r"bleu", "sacrebleu"),
    (r"chrf.*", "chrf"),
    (r"pearson.*", "pearsonr"),
    (r"spearman.*", "spearmanr"),
    (r"matthews.*", "matthews_correlation"),
    (r"perplexity|accuracy|ter|mse|mae|loss", r"\g<0>"),
)
"""Pattern of a score's name to the metric's id on https://huggingface.co/metrics."""
FEW = 1000
MOST_SAMPLES = 3
TRAIN = (
    "learning_rate",
    "schedule",
    "warmup",
    "optimizer",
    "weight_decay",
    "label_smoothing",
    "max_grad_norm",
    "per_device_batch_size",
    "global_batch_size",
    "global_batch_tokens",
    "max_length",
    "precision",
    "seed",
)


def card(record: RunRecord, folder: Path, settings: PublishConfig, repo: str) -> str:
    """The whole README.md of the repository ``repo``: metadata and text; ``record`` is one that may be
    seen."""
    from huggingface_hub import ModelCard

    text = "\n\n".join(part for part in _text(record, folder, settings, repo) if part)
    return str(
        ModelCard(
            f"---\n{metadata(record, folder, settings, repo).to_yaml(line_break=chr(10))}\n---\n\n{text}\n"
        )
    )


def metadata(record: RunRecord, folder: Path, settings: PublishConfig, repo: str) -> Any:
    """The card's ``huggingface_hub.ModelCardData``."""
    from huggingface_hub import ModelCardData

    scores = _final(record)
    adapter = (folder / ADAPTER).is_file()
    kind = str(read_json(folder / ADAPTER).get("peft_type") or "").lower()
    more: dict[str, Any] = {"co2_eq_emissions": energy} if (energy := _energy(folder)) else {}
    sets, languages = _data_sets(record), _languages(record, settings)
    base = base_model(record, folder, settings)
    more |= {"base_model_relation": _relation(folder)} if base else {}
    return ModelCardData(
        base_model=base,
        datasets=sets or None,
        eval_results=[_result(record, folder, score) for score in scores] or None,
        language=languages[0] if len(languages) == 1 else languages or None,
        library_name="peft" if adapter else "transformers",
        license=settings.license,
        metrics=list(dict.fromkeys(name for s in scores if (name := _metric(s.name)))) or None,
        model_name=repo.rpartition("/")[2],
        pipeline_tag=_pipeline(record, folder),
        tags=[tag for tag in ("hftk", record.task.replace("_", "-"), kind) if tag],
        **more,
    )


def base_model(record: RunRecord, folder: Path, settings: PublishConfig) -> str | None:
    """Hub id of the model that was fine-tuned; None where it was made on the spot or came from a folder."""
    if settings.base_model:
        return settings.base_model
    over = read_json(folder / ADAPTER).get("base_model_name_or_path")
    name = str(over or (record.config.get("model") or {}).get("name") or "")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name, re.ASCII) or Path(name).exists():
        return None
    if over:  # an adapter's base is looked up on the Hub by this name
        return name
    if "from_hub" in record.model:
        return name if record.model["from_hub"] else None
    return (
        name if "/" in name else None
    )  # a record of an earlier version does not say where the model came from


def _relation(folder: Path) -> str:
    """How this model came from its base, as the Hub calls it."""
    if (folder / ADAPTER).is_file():
        return "adapter"
    return "quantized" if read_json(folder / "config.json").get("quantization_config") else "finetune"


# --- Metadata


def _final(record: RunRecord) -> list[Score]:
    """Scores of the trained model that are numbers."""
    return [score for score in record.scores if score.when == "after" and math.isfinite(score.value)]


def _result(record: RunRecord, folder: Path, score: Score) -> EvalResult:
    from huggingface_hub import EvalResult

    exact = {
        "interval_95": list(score.interval) if score.interval else None,
        "n": score.n,
        "unit": score.unit,
        "signature": score.signature,
    }
    sets = _data_sets(record)
    return EvalResult(
        task_type=_pipeline(record, folder),
        task_name=wording.task_title(record),
        dataset_type=sets[0] if sets else _as_id(wording.data_name(record)),
        dataset_name=wording.data_name(record),
        dataset_config=(record.config.get("data") or {}).get("subset"),
        dataset_split=score.split or None,
        dataset_revision=next((s["commit"] for s in _sources(record) if s.get("commit")), None),
        metric_type=_metric(score.name) or score.name,
        metric_name=score.name,
        metric_value=score.value,
        metric_args={name: value for name, value in exact.items() if value not in (None, "")},
    )


def _as_id(name: str) -> str:
    """A name in the form of a Hub id: the Hub wants one also for data that it does not have."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "custom"


def _metric(name: str) -> str | None:
    """The Hub's id of a metric, or None for one that it does not have."""
    found = ((re.fullmatch(pattern, name, re.IGNORECASE), known) for pattern, known in METRICS)
    return next((match.expand(known) for match, known in found if match), None)


def _pipeline(record: RunRecord, folder: Path) -> str:
    return OF_TASKS.get(record.task) or PIPELINES[head_of(record, folder)]


def _sources(record: RunRecord) -> list[dict[str, Any]]:
    return [source for source in record.data.get("sources") or [] if isinstance(source, dict)]


def _data_sets(record: RunRecord) -> list[str]:
    """Hub ids of the data sets that were read."""
    return list(dict.fromkeys(str(source["hub"]) for source in _sources(record) if source.get("hub")))


def _languages(record: RunRecord, settings: PublishConfig) -> list[str]:
    """ISO 639 codes: those that were asked for, else those of the task's settings (zh of zh-CN, deu of
    deu_Latn)."""
    if settings.language:
        return [code.strip() for code in settings.language.split(",")]
    given = [record.config.get(name) for name in ("language", "source_language", "target_language")]
    codes = [re.split(r"[-_]", str(code))[0].lower() for code in given if code]
    return list(dict.fromkeys(code for code in codes if re.fullmatch(r"[a-z]{2,3}", code)))


def _energy(folder: Path) -> dict[str, Any] | None:
    """What codecarbon wrote while training (``--train.extra.report_to codecarbon``), in the Hub's fields;
    grams of CO2."""
    path = next(
        (file for file in (folder / "emissions.csv", folder / "checkpoints/emissions.csv") if file.is_file()),
        None,
    )
    if path is None:
        return None
    try:
        with path.open(encoding="utf-8", newline="") as file:
            last = list(csv.DictReader(file))[-1]
        energy: dict[str, Any] = {
            "emissions": round(1000 * float(last["emissions"]), 6),
            "source": "codecarbon",
            "training_type": "fine-tuning",
        }
        return energy | {"energy_consumed_kwh": float(last["energy_consumed"])}
    except (IndexError, KeyError, ValueError, TypeError):
        return None


# --- Text


def _text(record: RunRecord, folder: Path, settings: PublishConfig, repo: str) -> Iterator[str]:
    yield f"# {escape(repo.rpartition('/')[2])}"
    yield _opening(record, folder, settings)
    yield f"**{escape(wording.verdict(record))}**"
    if record.scores:
        yield "## Scores"
        yield scores_table(record)
        yield _signatures(record)
    yield "## How to use it"
    yield fenced(usage(record, folder, repo), "python")
    yield "With hftk, which also judges it on other data (`hftk evaluate`):"
    yield fenced(
        f"hf download {repo} --local-dir {repo.rpartition('/')[2]}\nhftk predict {repo.rpartition('/')[2]}",
        "sh",
    )
    if record.samples:
        yield "## Examples"
        yield from (_example(sample) for sample in record.samples[:MOST_SAMPLES])
    yield "## Data"
    yield _data(record)
    yield "## Training"
    yield _training(record)
    yield _cost(record, folder)
    yield "## Limits"
    yield "\n".join(f"- {line}" for line in _limits(record, settings))
    yield _closing(record)


def _opening(record: RunRecord, folder: Path, settings: PublishConfig) -> str:
    base = base_model(record, folder, settings)
    size, _ = wording.parameters(record)
    about = f" ({wording.about(size)} parameters)" if size else ""
    if base:
        model = f"[{base}](https://huggingface.co/{base}){about}, fine-tuned"
    elif record.model.get("pretrained"):
        model = f"{escape(wording.model_name(record))}{about}, fine-tuned"
    else:
        model = f"{escape(wording.model_name(record))}{about}, trained from random weights"
    if (folder / ADAPTER).is_file():
        model += (
            f" as a PEFT adapter ({read_json(folder / ADAPTER).get('peft_type', 'LORA')}), which needs its"
            " base model"
        )
    sets = _data_sets(record)
    data = (
        f"[{sets[0]}](https://huggingface.co/datasets/{sets[0]})"
        if sets
        else escape(wording.data_name(record))
    )
    return f"{wording.task_title(record)}: {model}, on {data}."


def _signatures(record: RunRecord) -> str:
    names: dict[str, list[str]] = {}
    for score in record.scores:
        if score.signature and score.when == "after":
            names.setdefault(score.signature, []).append(score.name)
    lines = [f"- {escape(', '.join(scores))}: `{signature}`" for signature, scores in names.items()]
    head = "Intervals are 95 % bootstrap intervals over the judged rows. What each number is exactly:"
    return "\n".join([head, "", *lines]) if lines else ""


def _example(sample: dict[str, Any]) -> str:
    return fenced("\n".join(f"{field['label']}: {field['text']}" for field in sample_view(sample)["fields"]))


def _data(record: RunRecord) -> str:
    facts = record.data
    splits = {name: count for name, count in (facts.get("rows") or {}).items() if isinstance(count, int)}
    characters, dropped = facts.get("characters") or {}, facts.get("duplicates") or {}
    rows = [
        (
            name,
            wording.number(count),
            wording.number(characters.get(name)),
            wording.number((dropped.get(name) or {}).get("dropped")),
        )
        for name, count in splits.items()
    ]
    parts = [table(("split", "rows", "characters", "repetitions dropped"), rows, numbers=True)]
    lines = []
    for source in _sources(record):
        name = next(
            (str(source[k]) for k in ("hub", "sample", "path") if source.get(k)), "rows given from Python"
        )
        exact = next((f"{k} `{source[k]}`" for k in ("commit", "sha256") if source.get(k)), "")
        lines.append(
            f"- {escape(str(source.get('split') or 'rows'))}: {escape(name)}"
            + (f", {exact}" if exact else "")
        )
    columns = ", ".join(f"{role} = {name}" for role, name in (facts.get("columns") or {}).items())
    lines += [f"- columns: {escape(columns)}"] if columns else []
    moved = {k: v for k, v in (facts.get("overlap") or {}).items() if v}
    lines += (
        [f"- training rows that also stood in another split were dropped: {sum(moved.values()):,}"]
        if moved
        else []
    )
    proof = facts.get("proof") or {}
    if proof.get("overlap") == 0:
        lines.append(f"- no two splits share a row ({escape(str(proof.get('method', 'compared')))})")
    return (
        "\n\n".join([*(part for part in parts if part), *(["\n".join(lines)] if lines else [])])
        or "The record holds no facts about the data."
    )


def _training(record: RunRecord) -> str:
    settings = record.config.get("train") or {}
    rows = [("passes", passes(record))] if record.history else []
    rows += [
        (wording.words(name), wording.exact(settings[name]))
        for name in TRAIN
        if settings.get(name) not in (None, "", 0, 0.0) or (name == "seed" and name in settings)
    ]
    model = record.config.get("model") or {}
    for name in ("quantization", "adapter"):
        part = {k: v for k, v in (model.get(name) or {}).items() if v not in (None, [], {}, "none")}
        if (part.get("bits") if name == "quantization" else part.get("method")) is not None:
            rows.append((name, ", ".join(f"{wording.words(k)} {wording.exact(v)}" for k, v in part.items())))
    rows.append(("processes", wording.exact(record.processes)))
    return (
        table(("setting", "value"), rows)
        + "\n\nAll settings are in `config.yaml`, all numbers in `record.json`, and curves in `report.html`."
    )


def _cost(record: RunRecord, folder: Path) -> str:
    hardware = record.hardware
    machine = ", ".join(hardware.get("gpus") or []) or str(hardware.get("cpu") or "")
    took = wording.duration(record.seconds.get("train")) if record.seconds.get("train") else ""
    parts = [f"Training took {took}" if took else "", f"on {escape(machine)}" if machine else ""]
    parts += (
        [f"at {wording.number(round(record.tokens_per_second))} tokens per second"]
        if record.tokens_per_second
        else []
    )
    text = " ".join(part for part in parts if part)
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    sentences = [text, f"Versions: {escape(versions)}" if versions else ""]
    if energy := _energy(folder):
        sentences.append(
            f"Estimated by codecarbon: {energy['energy_consumed_kwh']:.3g} kWh, {energy['emissions']:.3g} g"
            " of CO2"
        )
    return " ".join(f"{sentence}." for sentence in sentences if sentence)


def _limits(record: RunRecord, settings: PublishConfig) -> Iterator[str]:
    """What the record gives reason to be careful about, and what it cannot say."""
    main = record.main_score
    if record.model.get("pretrained") is False:
        yield "The weights started at random and saw only the data above: this is no general-purpose model."
    if main is None:
        yield "No held-out rows were judged: nothing is known about its quality."
    else:
        yield from _limits_of(main, record)
    cut, judged = record.data.get("training") or {}, record.data.get("judged") or {}
    if lost := (cut.get("truncated_rows") or 0) + (judged.get("truncated_rows") or 0):
        yield (
            f"Texts longer than {wording.exact(cut.get('max_length') or judged.get('max_length'))} tokens"
            f" were cut: {lost:,} rows of the data."
        )
    yield (
        "It was judged on rows of the same source as its training data; other domains, languages and styles"
        " were not tried."
    )
    if settings.license is None:
        yield (
            "Its license is unknown: nobody named one. Those of the data and of the base model, where there"
            " is one, hold in any case."
        )
    yield "It was not examined for bias or harmful outputs; it repeats what its data and its base model hold."


def _limits_of(main: Score, record: RunRecord) -> Iterator[str]:
    rival = wording.best(record.related(main, "baseline:"))
    if rival is not None and not wording.better(main, rival):
        yield f"The {wording.system(rival)} does at least as well: {wording.number(rival.value)}."
    elif rival is not None and wording.overlap(main, rival):
        yield (
            f"The interval of its {escape(wording.words(main.name))} overlaps that of the"
            f" {wording.system(rival)}: the difference may be chance."
        )
    if main.split == "validation":
        yield (
            "There was no test split: the scores are those of the validation split, by which choices may have"
            " been made."
        )
    if main.n < FEW:
        yield (
            f"Only {wording.plural(main.n, 'unit')} (rows, documents or blocks) were judged: mind the"
            " intervals."
        )
    yield (
        "The intervals tell what other rows of the same kind would change, not what another seed would: one"
        " run was made."
    )


def _closing(record: RunRecord) -> str:
    made = f"Made with hftk {escape(record.hftk)}" + (
        f", {wording.moment(record.finished)}" if record.finished else ""
    )
    return f"{made}. The command:\n\n{fenced(record.command, 'sh')}" if record.command else f"{made}."
