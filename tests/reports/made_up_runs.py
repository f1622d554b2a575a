"""Runs as their stages would leave them, made up; and a parser that checks a page."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from typing import Any

from hftk.reports.record import RunRecord
from hftk.task import Score

VOID = {"meta", "link", "br", "img", "input", "hr", "col", "path"}


def score(name: str, value: float, when: str = "after", *, higher: bool = False, **more: Any) -> Score:
    spread = more.pop("spread", 0.03 * abs(value))
    interval = (value - spread, value + spread) if spread else None
    facts: dict[str, Any] = {"n": 312, "split": "test", "interval": interval, **more}
    return Score(name=name, value=value, when=when, higher_is_better=higher, **facts)


def gpt2_run(points: int = 200) -> RunRecord:
    """A made-up run of the first recipe, as its stages would leave it."""
    history: list[dict[str, Any]] = []
    for i in range(points):
        step = 6 * (i + 1)
        noise = 0.05 * math.sin(7 * i) + 0.04 * math.cos(13 * i)
        rate = 1e-3 * min(step / 60, (6 * points - step) / max(1, 6 * points - 60))
        history.append(
            {
                "step": step,
                "epoch": 3 * (i + 1) / points,
                "loss": 4.05 + 4.2 * math.exp(-i / 28) + noise,
                "learning_rate": rate,
                "grad_norm": 0.8 + 3 * math.exp(-i / 9) + 2 * abs(noise),
                "tokens": step * 3584,
                "seconds": 0.09 * step,
                "eval_loss": None,
            }
        )
        if (i + 1) % max(1, points // 10) == 0:
            history[-1]["eval_loss"] = 4.13 + 4.0 * math.exp(-i / 30)
    signature = "tokens|bpe:4096|context:256|stride:256|hftk:0.1.0"
    return RunRecord(
        hftk="0.1.0",
        task="causal_lm",
        started="2026-11-21T22:40:02+00:00",
        finished="2026-11-21T22:43:10+00:00",
        command="accelerate launch recipes/gpt2_clm.py --train.epochs 3",
        config={
            "data": {"sample": "python_docs", "columns": {}, "validation_fraction": 0.05, "seed": 0},
            "model": {"name": None, "size": "mini", "vocab_size": 4096, "dtype": "auto"},
            "train": {
                "epochs": 3.0,
                "per_device_batch_size": 16,
                "learning_rate": 1e-3,
                "schedule": "cosine",
                "warmup": 0.05,
            },
            "eval": {"batch_size": 32, "resamples": 1000},
            "output": "out/gpt2_clm",
        },
        choices=[
            "precision bf16: a training step took 31 ms, 58 ms in fp32 (measured on this processor)",
            "model made on the spot (gpt2, mini): for the real one add --model.name openai-community/gpt2",
            "context 256: the model's own",
        ],
        model={
            "architecture": "gpt2",
            "parameters": {"total": 4_212_480, "trained": 4_212_480},
            "context": 256,
            "vocabulary": 4096,
            "origin": "made on the spot",
            "dtype": "float32",
        },
        data={
            "source": "documentation of Python 3.11 (pydoc_data.topics and docstrings)",
            "splits": {
                "train": {"documents": 5621, "characters": 912_331, "tokens": 254_930},
                "validation": {"documents": 301, "characters": 48_120, "tokens": 13_411},
                "test": {"documents": 312, "characters": 50_977, "tokens": 14_096},
            },
            "read": 6390,
            "altered by NFC": 0,
            "empty, dropped": 3,
            "dropped": {"repeated in train": 121, "of train in validation": 14, "of train in test": 18},
            "disjoint": {"train and validation": 0, "train and test": 0, "validation and test": 0},
        },
        history=history,
        scores=[
            score("perplexity", 4093.2, "before", signature=signature, spread=18.0),
            score("bits_per_byte", 3.911, "before", unit="bits/byte", signature=signature, spread=0.02),
            score("perplexity", 61.34, signature=signature, spread=2.4),
            score("bits_per_byte", 1.935, unit="bits/byte", signature=signature, spread=0.02),
            score("perplexity", 612.4, "baseline:unigram", signature="add-one, same tokens", spread=21),
            score(
                "perplexity",
                85.2,
                "baseline:bigram",
                signature="interpolated Kneser-Ney, same tokens",
                spread=3.1,
            ),
        ],
        samples=[
            {
                "prompt": "The with statement is used to",
                "text": (
                    " wrap the execution of a block with methods defined by a context manager. This allows"
                    " common try…except…finally usage patterns to be encapsulated for convenient"
                    " reuse.\n\nThe context manager's __exit__() method is called."
                ),
                "text_before": " gz\u0142\ufffd mul seq ))) 0x getattr the the = = return\n",
                "reference": (
                    " wrap the execution of a block with methods defined by a context "
                    "manager (see section With Statement Context Managers)."
                ),
            },
            {
                "prompt": "明月几时有",
                "text": "，把酒问青天。不知天上宫阙，今夕是何年。我欲乘风归去，又恐琼楼玉宇，高处不胜寒。",
                "text_before": "的的，，。一 一 不不人",
                "reference": "，把酒问青天。不知天上宫阙，今夕是何年。",
            },
        ],
        seconds={"load": 9.2, "train": 108.4, "evaluate": 41.7, "save": 1.9, "total": 168.3},
        tokens_per_second=39_690.4,
        peak_memory_bytes=1_312_444_416,
        processes=2,
        hardware={
            "cpu": "AMD EPYC 9R45",
            "cores": 2,
            "ram_bytes": 25_276_514_304,
            "gpus": [],
            "threads": 2,
            "os": "Linux 6.18 x86_64",
        },
        versions={
            "hftk": "0.1.0",
            "python": "3.11.7",
            "torch": "2.13.0+cpu",
            "transformers": "5.23.0",
            "datasets": "5.2.0",
        },
        git={"commit": "9f3c1e0a7d5b4f28a6cc01b7e2d94c7f3ab0d5e1", "dirty": False},
    )


def classification_run() -> RunRecord:
    """A classifier: scores between 0 and 1, higher is better, short predictions beside their labels."""
    return RunRecord(
        hftk="0.1.0",
        task="classification",
        finished="2026-11-21T22:43:10+00:00",
        config={
            "data": {"path": "stanfordnlp/sst2"},
            "model": {"name": "google-bert/bert-base-uncased"},
            "output": "out/bert",
        },
        model={"parameters": {"total": 109_483_778, "trained": 1_331_716}, "adapter": "lora, rank 16"},
        history=[
            {"step": s, "loss": 0.69 * math.exp(-s / 400), "learning_rate": 5e-5 * (1 - s / 800)}
            | (
                {"eval_loss": 0.4, "eval_accuracy": 0.9 - 40 / s, "eval_f1_macro": 0.89 - 44 / s}
                if s % 80 == 0
                else {}
            )
            for s in range(8, 801, 8)
        ],
        scores=[
            score("accuracy", 0.492, "before", higher=True, n=1821, spread=0.023),
            score("accuracy", 0.8875, higher=True, n=1821, spread=0.015),
            score("f1_macro", 0.8869, higher=True, n=1821, spread=0.016),
            score("loss", 0.3121, unit="nats/row", n=1821, spread=0.02),
            score("accuracy", 0.5, "baseline:majority", higher=True, n=1821, spread=0.023),
            score("accuracy", 0.8012, "baseline:tfidf", higher=True, n=1821, spread=0.018),
        ],
        analysis=every_section(),
        samples=[
            {
                "text": "a gorgeous, witty, seductive movie .",
                "prediction": "positive",
                "label": "positive",
                "probability": 0.9987,
            },
            {
                "text": "it 's slow -- very , very slow .",
                "prediction": "positive",
                "label": "negative",
                "probability": 0.5321,
            },
        ],
        seconds={"load": 6.1, "train": 3721.0, "evaluate": 64.0, "save": 2.2, "total": 3802.9},
        tokens_per_second=2_702.0,
    )


def every_section() -> list[dict[str, Any]]:
    """One section of every kind, as a task would leave it."""
    per_class = [
        {
            "label": name,
            "precision": {"value": p, "interval": [p - 0.02, p + 0.02]},
            "recall": r,
            "rows": n,
            "best": None,
        }
        for name, p, r, n in (("negative", 0.9012, 0.05, 912), ("positive", 0.8741, 1.0, 909))
    ]
    bins = [
        {
            "low": i / 10,
            "high": (i + 1) / 10,
            "rows": 40 * i * (i > 4),
            "confidence": i / 10 + 0.06 if i > 4 else None,
            "accuracy": i / 10 + 0.01 if i > 4 else None,
            "accuracy_interval": [i / 10 - 0.04, i / 10 + 0.05] if i > 4 else None,
        }
        for i in range(10)
    ]
    return [
        {
            "title": "Confusion matrix",
            "kind": "matrix",
            "split": "test",
            "rows": ["negative", "positive"],
            "columns": ["negative", "positive"],
            "values": [[800, 112], [93, 816]],
            "row_title": "true label",
            "column_title": "predicted label",
            "note": "Most mistakes are short reviews.",
        },
        {
            "title": "By class",
            "kind": "table",
            "split": "test",
            "rows": per_class,
            "columns": [{"key": k, "title": k} for k in ("label", "precision", "recall", "rows", "best")],
        },
        {
            "title": "Most confident mistakes",
            "kind": "examples",
            "rows": [
                {
                    "text": "a film of <b>ideas</b> .",
                    "text_pair": "its pair",
                    "label": "negative",
                    "prediction": "positive",
                    "probability": 0.98,
                }
            ],
        },
        {"title": "Calibration", "kind": "reliability", "bins": bins},
        {
            "title": "Predicted against true",
            "kind": "scatter",
            "points": [[i / 10, i / 11 + 0.2] for i in range(50)],
            "x_title": "true value",
            "y_title": "predicted value",
        },
        {"title": "Thresholds", "kind": "facts", "facts": {"temperature": 1.31, "labels": {"negative": 0.5}}},
    ]


EVERY_RUN = {
    "gpt2": gpt2_run(),
    "classification": classification_run(),
    "nothing": RunRecord(hftk="0.1.0", task="causal_lm"),
    "one_point": RunRecord(
        hftk="0.1.0", task="x", history=[{"step": 1, "loss": 2.0}], scores=[score("loss", 2.0, spread=0)]
    ),
    "not_finite": RunRecord(
        hftk="0.1.0",
        task="causal_lm",
        status="failed",
        history=[{"step": 1, "loss": math.nan}, {"step": 2, "loss": math.inf}],
        scores=[score("perplexity", math.nan, spread=0)],
        seconds={"total": None},
    ),
}


class Page(HTMLParser):
    """Checks that tags are balanced, and collects what a test asks about."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack.pop() == tag, f"</{tag}> at {self.getpos()} closes something else"
        self.text += " " if tag in ("td", "th", "dt", "dd", "li") else ""

    def handle_data(self, data: str) -> None:
        if self.stack[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.stack[-1:] != ["style"]:
            self.text += data

    def charts(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.scripts if text.startswith("{")]
