"""What transformers' own Trainer and the usual metrics compute beside what is right, and what hftk computes:
every number of docs/stock-trainer.md.

    python benchmarks/stock_trainer.py            # about a minute on two cores, no network

Models of some thousand weights, in fp32, without dropout; hftk and the stock trainer get the same weights,
tokens and rows. "Right" is computed by itself, from the definition: one row at a time, the sum of the losses
of all items divided by their number. Writes results/stock_trainer.json.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from datasets import ClassLabel, Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import hftk
from hftk.config import DataConfig, EvalConfig, GenerationSettings, ModelConfig, TrainConfig
from hftk.launch.environment import environment
from hftk.task import Splits
from hftk.training import fit
from hftk.training.trainer import ExactTrainer

ROOT = Path(__file__).resolve().parent.parent
LENGTHS = (5, 11, 23, 47, 8, 30)
"""Characters, which are the tokens here, of the rows of a global batch."""
MANY = 7
"""Rows that two processes judge."""
BART = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "d_model": 32,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "gpt2": (
        hftk.CausalLM,
        hftk.CausalLMConfig,
        {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64},
    ),
    "bert": (
        hftk.Classification,
        hftk.ClassificationConfig,
        {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64},
    ),
    "t5": (
        hftk.Summarization,
        hftk.SummarizationConfig,
        {"num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "d_model": 32, "d_kv": 16, "d_ff": 64},
    ),
    "marian": (hftk.Translation, hftk.TranslationConfig, BART),
}


class Setup:
    """One kind of model: rows, tokens, a task and a model with the same weights each time."""

    def __init__(self, kind: str, output: Path, *, per_device: int, rows: Dataset) -> None:
        made, config, shape = KINDS[kind]
        self.kind, self.per_device = kind, per_device
        self.config = config(
            data=DataConfig(deduplicate=False),
            model=ModelConfig(
                size="tiny", architecture=kind, tokenizer="characters", config=shape, dropout=0.0
            ),
            train=TrainConfig(
                max_steps=1,
                per_device_batch_size=per_device,
                global_batch_size=len(rows),
                learning_rate=0.1,
                optimizer="sgd",
                max_grad_norm=0.0,
                precision="fp32",
                log_steps=1,
                save_steps=0,
                max_length=64,
            ),
            eval=EvalConfig(resamples=0, batch_size=per_device),
            generation=GenerationSettings(max_new_tokens=4),
            output=str(output),
        )
        self.splits = Splits(train=rows, test=rows)
        self.task = made(self.config)
        self.model, self.tokenizer = hftk.load_model(self.config.model, self.task, self.splits, seed=0)
        if kind != "t5":  # which starts with large ones
            with torch.no_grad():  # rows with losses and answers that differ
                for parameter in self.model.parameters():
                    parameter.mul_(3.0)

    def features(self) -> list[dict[str, Any]]:
        """The rows as the stock collators take them."""
        encoded = self.task.encode(
            self.splits.train, self.tokenizer, max_length=64, training=self.kind != "gpt2"
        )
        rows = [encoded[i] for i in range(len(encoded))]
        if self.kind == "gpt2":  # rows for judging are shifted already, and have no end token
            end = self.tokenizer.eos_token_id
            return [{"input_ids": [*map(int, row["input_ids"]), int(row["labels"][-1]), end]} for row in rows]
        names = {"bert": ("input_ids", "attention_mask", "token_type_ids", "labels")}.get(
            self.kind, ("input_ids", "attention_mask", "labels")
        )
        return [
            {
                name: row[name].tolist() if hasattr(row[name], "tolist") else row[name]
                for name in names
                if name in row
            }
            for row in rows
        ]

    def collator(self) -> Any:
        if self.kind == "gpt2":
            return LanguageModelCollator(self.tokenizer.pad_token_id)
        return (
            DataCollatorWithPadding(self.tokenizer)
            if self.kind == "bert"
            else DataCollatorForSeq2Seq(self.tokenizer, model=self.model)
        )

    def right(self) -> tuple[float, dict[str, torch.Tensor]]:
        """Loss and gradient of the global batch by definition: row by row, the sum over all items by their
        number."""
        total, items = torch.zeros((), dtype=torch.float64), 0
        collate = self.collator()
        self.model.zero_grad()
        self.model.eval()
        for feature in self.features():
            batch = collate([dict(feature)])
            labels = batch.pop("labels")
            if self.kind == "bert":
                logits = self.model(**batch).logits
            elif self.kind == "gpt2":
                logits, labels = self.model(**batch).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            else:
                logits, labels = self.model(**batch, labels=labels).logits.flatten(0, 1), labels.flatten()
            total = total + torch.nn.functional.cross_entropy(
                logits.double(), labels, ignore_index=-100, reduction="sum"
            )
            items += int((labels != -100).sum())
        (total / items).backward()
        gradient = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad()
        return float(total.detach() / items), gradient


class LanguageModelCollator:
    """Pads on the right; padding is not trained (``DataCollatorForLanguageModeling`` would not train the end
    tokens either)."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        filled = [(row["input_ids"], longest - len(row["input_ids"])) for row in rows]
        return {
            "input_ids": torch.tensor([ids + [self.pad] * n for ids, n in filled]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * n for ids, n in filled]),
            "labels": torch.tensor([ids + [-100] * n for ids, n in filled]),
        }


class Watch(TrainerCallback):
    """Keeps the gradient of the first step."""

    def __init__(self) -> None:
        self.gradient: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.gradient:
            self.gradient = {
                n: p.grad.clone() for n, p in kwargs["model"].named_parameters() if p.grad is not None
            }


def rows_for(kind: str, lengths: tuple[int, ...] = LENGTHS) -> Dataset:
    rng = random.Random(0)
    texts = ["".join(rng.choice("abcdefgh ") for _ in range(n - 1)) + "." for n in lengths]
    targets = ["".join(sorted(text[: max(2, len(text) // 2)])) for text in texts]
    columns = {"gpt2": {"text": texts}, "bert": {"text": texts, "label": [n % 2 for n in range(len(texts))]}}
    rows = Dataset.from_dict(columns.get(kind, {"source": texts, "target": targets}))
    return rows.cast_column("label", ClassLabel(names=["0", "1"])) if kind == "bert" else rows


def stock_trainer(setup: Setup, output: Path, **changes: Any) -> Any:
    """The stock trainer with everything else as in ``setup``."""
    sequence = setup.kind in ("t5", "marian")
    arguments = (Seq2SeqTrainingArguments if sequence else TrainingArguments)(
        output_dir=str(output),
        max_steps=1,
        per_device_train_batch_size=setup.per_device,
        per_device_eval_batch_size=setup.per_device,
        gradient_accumulation_steps=max(1, len(setup.splits.train) // setup.per_device),
        learning_rate=0.1,
        optim="sgd",
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        train_sampling_strategy="sequential",
        disable_tqdm=True,
        **changes,
    )
    features = setup.features()
    data = Dataset.from_list(features)
    return (Seq2SeqTrainer if sequence else Trainer)(
        model=setup.model,
        args=arguments,
        train_dataset=data,
        eval_dataset=data,
        data_collator=setup.collator(),
        processing_class=setup.tokenizer,
    )


def compare(found: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> dict[str, float]:
    """Length and direction of a gradient beside the right one."""
    names = sorted(right)
    one, other = (torch.cat([g[n].double().flatten() for n in names]) for g in (found, right))
    return {
        "gradient_ratio": float(one.norm() / other.norm()),
        "cosine": float(torch.dot(one, other) / (one.norm() * other.norm())),
    }


def one_step(kind: str, per_device: int, folder: Path) -> dict[str, Any]:
    """Loss and gradient of one global batch of all rows in pieces of ``per_device``."""
    rows = rows_for(kind)
    setup = Setup(kind, folder / "stock", per_device=per_device, rows=rows)
    loss, gradient = setup.right()
    trainer, watch = stock_trainer(setup, folder / "stock"), Watch()
    trainer.add_callback(watch)
    trainer.train()
    stock = {
        "loss": next(p["loss"] for p in trainer.state.log_history if "loss" in p),
        **compare(watch.gradient, gradient),
    }
    setup, watch = (
        Setup(kind, folder / f"hftk {kind} {per_device}", per_device=per_device, rows=rows),
        Watch(),
    )

    class Watched(ExactTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(watch)

    with mock.patch.object(fit, "ExactTrainer", Watched):
        trained = hftk.fit(setup.task, setup.model, setup.tokenizer, setup.splits, setup.config)
    ours = {
        "loss": next(p["loss"] for p in trained.history if "loss" in p),
        **compare(watch.gradient, gradient),
    }
    for entry in (stock, ours):
        entry["loss_ratio"] = entry["loss"] / loss
    return {"right_loss": loss, "stock": stock, "hftk": ours}


def eval_losses(folder: Path) -> dict[str, Any]:
    """The loss of the same rows at several batch sizes, of the model that writes summaries."""
    found: dict[str, Any] = {"stock": {}, "hftk": {}}
    for size in (1, 2, 4):
        setup = Setup("t5", folder / f"eval {size}", per_device=size, rows=rows_for("t5"))
        found["right"] = setup.right()[0]
        found["stock"][size] = stock_trainer(setup, folder / "stock").evaluate()["eval_loss"]
        judged = hftk.evaluate(
            setup.task, setup.model, setup.tokenizer, setup.splits.held_out, setup.config.eval
        )
        found["hftk"][size] = next(s.value for s in judged.scores if s.name == "loss")
    return found


def identical_texts() -> list[dict[str, Any]]:
    """Scores of a text against itself."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU

    from hftk.metrics.rouge import rouge_scores
    from hftk.metrics.translation import translation_scores

    found = []
    for language, text in (
        ("zh", "今天下午的天气非常好，我们去公园散步吧。"),
        ("ru", "Сегодня прекрасная погода, пойдём гулять в парк."),
        ("ja", "今日はとても天気がいいので公園へ散歩に行きましょう。"),
        ("en", "The weather is very nice today, let us walk in the park."),
    ):
        ours = {
            s.name: s.value
            for s in (
                *rouge_scores([text], [[text]], resamples=0, seed=0),
                *translation_scores([text], [[text]], language, resamples=0, seed=0),
            )
        }
        stock = {
            "rougeL": 100 * RougeScorer(["rougeL"]).score(text, text)["rougeL"].fmeasure,
            "bleu": BLEU().corpus_score([text], [[text]]).score,
        }
        found += [
            {"language": language, "score": name, "stock": stock[name], "hftk": ours[name]} for name in stock
        ]
    return found


def end_tokens(folder: Path) -> dict[str, Any]:
    """How many of the documents' end tokens are trained where the padding token is the end token, as GPT-2
    users set it."""
    setup = Setup("gpt2", folder / "ends", per_device=len(LENGTHS), rows=rows_for("gpt2"))
    end = setup.tokenizer.eos_token_id
    setup.tokenizer.pad_token = setup.tokenizer.eos_token
    collate = DataCollatorForLanguageModeling(setup.tokenizer, mlm=False)
    stock = collate([dict(row) for row in setup.features()])["labels"]
    encoded = setup.task.encode(setup.splits.train, setup.tokenizer, max_length=64, training=True)
    ours = sum(int((encoded[i]["labels"] == end).sum()) for i in range(len(encoded)))
    return {"documents": len(LENGTHS), "stock": int((stock == end).sum()), "hftk": ours}


def grouped_order(folder: Path) -> dict[str, Any]:
    """How many outputs of predict() stand at their own row with
    ``train_sampling_strategy="group_by_length"``."""
    rng = random.Random(1)
    lengths = tuple(rng.randint(3, 50) for _ in range(32))
    setup = Setup("bert", folder / "order", per_device=8, rows=rows_for("bert", lengths))
    setup.config = hftk.config.override(setup.config, {"eval": {"batch_size": 8}})
    rows = setup.features()
    with torch.no_grad():
        alone = torch.cat(
            [
                setup.model.eval()(
                    **setup.collator()([{k: v for k, v in row.items() if k != "labels"}])
                ).logits
                for row in rows
            ]
        )
    trainer = stock_trainer(setup, folder / "stock")
    sequential = torch.tensor(trainer.predict(trainer.eval_dataset).predictions)
    trainer.args.train_sampling_strategy = "group_by_length"
    stock = torch.tensor(trainer.predict(trainer.eval_dataset).predictions)
    judged = hftk.evaluate(setup.task, setup.model, setup.tokenizer, setup.splits.held_out, setup.config.eval)
    ours = torch.tensor(judged.outputs["logits"])
    outputs = {"stock": stock, "stock_sequential": sequential, "hftk": ours}
    near = {
        name: int(((found - alone).abs().max(dim=1).values < 1e-4).sum()) for name, found in outputs.items()
    }
    return {"rows": len(rows), **near}


def worker(folder: Path) -> None:
    """On two processes: how many outputs there are for ``MANY`` rows, and the loss of a classifier beside the
    right one."""
    found: dict[str, Any] = {"rows": MANY}
    lengths = (*LENGTHS, 17)
    setup = Setup("t5", folder / "generated", per_device=2, rows=rows_for("t5", lengths))
    trainer = stock_trainer(setup, folder / "stock", predict_with_generate=True, generation_max_length=6)
    predictions = trainer.predict(trainer.eval_dataset).predictions
    found["stock_outputs"] = len(predictions)
    judged = hftk.evaluate(setup.task, setup.model, setup.tokenizer, setup.splits.held_out, setup.config.eval)
    found["hftk_outputs"] = len(judged.outputs["generated"])
    setup = Setup("bert", folder / "judged", per_device=2, rows=rows_for("bert", (*LENGTHS, 17, 9)))
    right = setup.right()[0]
    found["stock_eval_loss_ratio"] = stock_trainer(setup, folder / "stock").evaluate()["eval_loss"] / right
    judged = hftk.evaluate(setup.task, setup.model, setup.tokenizer, setup.splits.held_out, setup.config.eval)
    found["hftk_eval_loss_ratio"] = next(s.value for s in judged.scores if s.name == "loss") / right
    from hftk.launch import launched

    if launched().is_main:
        (folder / "found.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def two_processes(folder: Path) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / "recipes/accelerate/two_processes.yaml"),
        __file__,
        "--worker",
        str(folder),
    ]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return json.loads((folder / "found.json").read_text())


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 5) if isinstance(value, float) else value


def measure(folder: Path) -> dict[str, Any]:
    """All of it; ``folder`` takes what the runs write."""
    return {
        "one_step": {
            kind: {size: one_step(kind, size, folder / kind) for size in (len(LENGTHS), 1)} for kind in KINDS
        },
        "eval_loss": eval_losses(folder),
        "identical_texts": identical_texts(),
        "end_tokens": end_tokens(folder),
        "grouped_order": grouped_order(folder),
        "two_processes": two_processes(folder),
    }


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        return worker(Path(sys.argv[2]))
    with tempfile.TemporaryDirectory() as folder:
        found = rounded(measure(Path(folder)))
    result = {"command": "python benchmarks/stock_trainer.py", "lengths": LENGTHS, **found, **environment()}
    path = ROOT / "results" / "stock_trainer.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
