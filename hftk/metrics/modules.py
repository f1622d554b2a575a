"""hftk's metrics as modules of the ``evaluate`` library, without the network that ``evaluate.load`` asks for.

    import evaluate
    from hftk.metrics.modules import load_metric

    metric = evaluate.combine([load_metric("bleu", language="zh"), load_metric("chrf"), load_metric("rouge")])
    metric.add_batch(predictions=["你好，世界"], references=["你好，世界"])
    metric.compute()            # {"bleu": 100.0, "chrf++": 100.0, "rouge1": 100.0, ...}

``evaluate`` keeps what is added in its cache folder until ``compute``; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hftk.config import InputError, Problem
from hftk.metrics.rouge import NAMES, rouge_rows
from hftk.metrics.translation import check_texts, translation_metrics


def load_metric(
    name: str,
    *,
    process_id: int = 0,
    num_process: int = 1,
    experiment_id: str | None = None,
    cache_dir: str | None = None,
    keep_in_memory: bool = False,
    **options: Any,
) -> Any:
    """An ``evaluate.Metric`` with ``compute``, ``add`` and ``add_batch``, which ``evaluate.combine`` takes as well.

    | name     | gives                                                   | options                                   |
    |----------|---------------------------------------------------------|-------------------------------------------|
    | bleu     | ``bleu``, 0 to 100                                      | ``language``: target language             |
    | chrf     | ``chrf++``, 0 to 100                                    |                                           |
    | ter      | ``ter``, edits per 100 tokens, lower is better          | ``language``                              |
    | rouge    | ``rouge1``, ``rouge2``, ``rougeL``, ``rougeLsum``, 0 to 100 | ``stem``, ``split_sentences``         |
    | accuracy | ``accuracy``, 0 to 1                                    | scikit-learn's ``accuracy_score``         |
    | f1       | ``f1``, 0 to 1, or one per class for ``average=None``   | scikit-learn's ``f1_score``: ``average``… |

    Values are those of :mod:`hftk.metrics.translation` and :mod:`hftk.metrics.rouge`, from 0 to 100, where the Hub's
    ``bleu`` and ``rouge`` go from 0 to 1. References are texts, or lists of texts where rows have several; labels are
    integers, texts, or lists of integers (multi-label). Options are given here, or to ``compute``, whose win; a
    combination hands those of ``compute`` to all its metrics, so give them here. The other arguments are those of
    ``evaluate.load``.

    Raises InputError for an unknown name, where ``evaluate`` is missing, and for no rows.
    """
    if name not in METRICS:
        known = ", ".join(METRICS)
        message = f"expected the name of a metric ({known}), found {name!r}"
        raise InputError(Problem(setting="", message=message, fix=f"type one of {known}"))
    try:
        import datasets
        import evaluate
    except ImportError as error:
        message = f"expected the package evaluate for load_metric({name!r}), found none"
        raise InputError(Problem(setting="", message=message, fix='pip install "hftk[evaluate]"')) from error

    function, inputs = METRICS[name]
    features = [datasets.Features(_features(kinds, datasets)) for kinds in inputs]

    def _info(self: Any) -> Any:
        return evaluate.MetricInfo(
            description=function.__doc__ or "", citation="", features=features, inputs_description=""
        )

    def _compute(self: Any, predictions: Any, references: Any, **more: Any) -> dict[str, Any]:
        return function(list(predictions), list(references), **{**options, **more})

    def add_batch(self: Any, *, predictions: Any = None, references: Any = None, **more: Any) -> None:
        """Add rows, at least one."""
        # evaluate looks at the first row for the types, and ends in an IndexError where there is none
        if predictions is not None and not len(predictions):
            message = "expected at least one row, found 0 predictions"
            raise InputError(Problem(setting="", message=message, fix="leave out batches without rows"))
        evaluate.Metric.add_batch(self, predictions=predictions, references=references, **more)

    # evaluate names a module, and its folder in the cache, after its class
    members = {"_info": _info, "_compute": _compute, "add_batch": add_batch}
    kind = type(name.capitalize(), (evaluate.Metric,), members)
    return kind(
        process_id=process_id, num_process=num_process, experiment_id=experiment_id, cache_dir=cache_dir,
        keep_in_memory=keep_in_memory,
    )  # fmt: skip


def _bleu(predictions: list[str], references: list[Any], *, language: str | None = None) -> dict[str, Any]:
    """BLEU by sacreBLEU with the tokenizer for the target language, from 0 to 100 (Papineni et al. 2002)."""
    return _translation("bleu", predictions, references, language)


def _chrf(predictions: list[str], references: list[Any]) -> dict[str, Any]:
    """chrF++ by sacreBLEU, from 0 to 100 (Popovic 2017)."""
    return _translation("chrf++", predictions, references, None)


def _ter(predictions: list[str], references: list[Any], *, language: str | None = None) -> dict[str, Any]:
    """Translation edit rate by sacreBLEU: edits per 100 tokens, lower is better (Snover et al. 2006)."""
    return _translation("ter", predictions, references, language)


def _rouge(
    predictions: list[str], references: list[Any], *, stem: bool = False, split_sentences: bool = False
) -> dict[str, Any]:
    """ROUGE F1 in every script, the mean over rows, from 0 to 100 (Lin 2004)."""
    rows = rouge_rows(predictions, _rows(references), stem=stem, split_sentences=split_sentences)
    return dict(zip(NAMES, rows.mean(axis=0).tolist(), strict=True))


def _accuracy(predictions: list[Any], references: list[Any], **options: Any) -> dict[str, Any]:
    """Share of rows whose label, or whose whole set of labels, is right."""
    from sklearn.metrics import accuracy_score

    return {"accuracy": float(accuracy_score(references, predictions, **options))}


def _f1(predictions: list[Any], references: list[Any], **options: Any) -> dict[str, Any]:
    """Harmonic mean of precision and recall; of label 1 (``average="binary"``) unless told otherwise."""
    from sklearn.metrics import f1_score

    found = f1_score(references, predictions, **options)
    return {"f1": found.tolist() if getattr(found, "ndim", 0) else float(found)}


def _translation(name: str, predictions: list[str], references: list[Any], language: str | None) -> dict[str, Any]:
    rows = _rows(references)
    check_texts(predictions, rows)
    metric = next(metric for metric in translation_metrics(language) if metric.name == name)
    return {name: metric.value(metric.statistics(predictions, rows))}


def _rows(references: list[Any]) -> list[Sequence[str]]:
    return [[row] if isinstance(row, str) else row for row in references]


def _features(kinds: tuple[str, str], datasets: Any) -> dict[str, Any]:
    """``evaluate``'s types of a prediction and a reference; "string*" and the like: a list of them."""
    return {
        role: datasets.Sequence(datasets.Value(kind[:-1])) if kind.endswith("*") else datasets.Value(kind)
        for role, kind in zip(("predictions", "references"), kinds, strict=True)
    }


# the first that fits a row is taken: texts come before integers, which would take "1" for 1
_TEXTS = (("string", "string*"), ("string", "string"))
_LABELS = (("string", "string"), ("int64", "int64"), ("int64*", "int64*"))
METRICS: dict[str, tuple[Callable[..., dict[str, Any]], tuple[tuple[str, str], ...]]] = {
    "bleu": (_bleu, _TEXTS),
    "chrf": (_chrf, _TEXTS),
    "ter": (_ter, _TEXTS),
    "rouge": (_rouge, _TEXTS),
    "accuracy": (_accuracy, _LABELS),
    "f1": (_f1, _LABELS),
}
"""Name to the function that computes it and the types of prediction and reference that it takes."""
