"""A task of your own: count the vowels of a text by regression."""

from dataclasses import dataclass

import numpy as np

import hftk
from hftk.metrics.regression import regression_scores
from hftk.task import Column, Features, Task


@dataclass(frozen=True, kw_only=True)
class VowelsConfig(hftk.RunConfig):
    """Settings of the task; it has none of its own."""


class Vowels(Task):
    name = "vowels"
    columns = {
        "text": Column(usual_names=("text",)),
        "count": Column(usual_names=("count",), kind="any", identity=False),
    }
    auto_model = "AutoModelForSequenceClassification"

    def model_settings(self, splits):
        return {"num_labels": 1}

    def encode(self, rows, tokenizer, *, max_length, training):
        ids = tokenizer(list(rows["text"]), truncation=True, max_length=max_length)["input_ids"]
        columns = {"input_ids": [np.array(i) for i in ids]}
        if "count" in rows.column_names:
            columns["labels"] = [np.float32(count) for count in rows["count"]]
        return Features(columns=columns, rows=np.arange(len(ids)), lengths=np.array([len(i) for i in ids]))

    def loss(self, model, batch):
        return {"items": (self.outputs(model, batch)["loss"].sum(), self.items(batch)["items"])}

    def outputs(self, model, batch):
        found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
        return {"prediction": found} | ({"loss": (found - batch["labels"]) ** 2} if "labels" in batch else {})

    def scores(self, outputs):
        counts = np.array(list(outputs.rows["count"]), float)
        return regression_scores(counts, outputs["prediction"], **outputs.bootstrap)
