"""Hold `hftk plan` against whole runs: planned bytes, and the rise of resident memory over the level after
the imports.

    python benchmarks/plan.py [--only NAME ...] [--threads 1]

Each case is a process of its own on the CPU: it imports what a run imports, notes its resident memory, then
runs a recipe's stages (data, model, training of a few steps, no judging) on rows that are as long as
`train.max_length` allows, and reports the highest resident memory. Models are made on the spot in published
sizes, so nothing is downloaded. Writes results/plan.json; a case that was run before is kept unless it is
named again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "results" / "plan.json"
SAME = ["--data.validation_fraction", "0", "--data.test_fraction", "0"]
LORA = ["--model.adapter.method", "lora"]
EIGHT_BITS = ["--model.quantization.bits", "8", *LORA]


def vocabulary(entries: int) -> list[str]:
    """Flags for as many entries as the published model of this shape has."""
    return ["--model.config.vocab_size", str(entries)]


GPT2 = [
    "gpt2_clm",
    "--packing",
    "concatenate",
    "--model.size",
    "small",
    *vocabulary(50257),
    "--train.max_length",
    "512",
    *SAME,
]
SMOLLM2 = [
    "gpt2_clm",
    "--packing",
    "concatenate",
    "--model.architecture",
    "llama",
    "--model.size",
    "mini",
    "--model.config.hidden_size",
    "576",
    "--model.config.num_hidden_layers",
    "30",
    "--model.config.num_attention_heads",
    "9",
    "--model.config.num_key_value_heads",
    "3",
    "--model.config.intermediate_size",
    "1536",
    "--model.config.tie_word_embeddings",
    "true",
    "--model.config.max_position_embeddings",
    "2048",
    *vocabulary(49152),
    "--train.max_length",
    "512",
    *SAME,
]
BERT = [
    "bert_classification",
    "--suspicious_labels",
    "0",
    "--model.size",
    "base",
    *vocabulary(30522),
    "--train.max_length",
    "128",
    *SAME,
]
T5 = [
    "t5_summarization",
    "--model.architecture",
    "t5",
    "--max_target_length",
    "64",
    "--model.size",
    "base",
    *vocabulary(32128),
    "--train.max_length",
    "128",
    *SAME,
]


def rows(number: int) -> list[str]:
    """Flags for micro-batches and steps of so many rows."""
    return ["--train.per_device_batch_size", str(number), "--train.global_batch_size", str(number)]


CASES: dict[str, list[str]] = {
    "gpt2 full, 2 rows": [*GPT2, *rows(2)],
    "gpt2 full, 4 rows": [*GPT2, *rows(4)],
    "gpt2 full, 4 rows, gradient checkpointing": [*GPT2, *rows(4), "--train.gradient_checkpointing"],
    "gpt2 full, 2 rows, bf16": [*GPT2, *rows(2), "--train.precision", "bf16"],
    "gpt2 full, 4 rows in 2 micro-batches": [
        *GPT2,
        "--train.per_device_batch_size",
        "2",
        "--train.global_batch_size",
        "4",
    ],
    "gpt2 lora, 4 rows": [*GPT2, *rows(4), *LORA],
    "gpt2 8 bits + lora, 6 rows": [*GPT2, *rows(6), *EIGHT_BITS],
    "smollm2 full, 2 rows": [*SMOLLM2, *rows(2)],
    "smollm2 lora, 3 rows": [*SMOLLM2, *rows(3), *LORA],
    "bert full, 4 rows": [*BERT, *rows(4)],
    "bert full, 8 rows": [*BERT, *rows(8)],
    "bert lora, 12 rows": [*BERT, *rows(12), *LORA],
    "bert 8 bits + lora, 16 rows": [*BERT, *rows(16), *EIGHT_BITS],
    "t5 full, 2 rows": [*T5, *rows(2)],
    "t5 lora, 6 rows": [*T5, *rows(6), *LORA],
    "t5 8 bits + lora, 12 rows": [*T5, *rows(12), *EIGHT_BITS],
}
"""Name to recipe and flags. The rise of each is 1.5 to 4 GB."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(CASES), metavar="NAME", help="run these cases alone"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        measure(json.loads(asked.child))
        return
    from hftk.launch.environment import environment

    cases = json.loads(RESULT.read_text(encoding="utf-8"))["cases"] if RESULT.exists() else {}
    for name in asked.only or [name for name in CASES if name not in cases]:
        cases[name] = run([*CASES[name], "--train.max_steps", str(asked.steps)], asked.threads)
        print(json.dumps({name: cases[name]}), flush=True)
        result = {
            "command": "python benchmarks/plan.py",
            "cases": {name: cases[name] for name in CASES if name in cases},
            **environment(),
        }
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def run(flags: list[str], threads: int) -> dict[str, Any]:
    """One case in a process of its own."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps(flags)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(flags)} failed:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(flags: list[str]) -> None:
    """Plan, then run in this process, and print both. Planning comes last, so that it cannot raise the
    level."""
    import psutil

    import hftk
    from hftk.cli.plan import load_recipe
    from hftk.config.parse import parse
    from hftk.launch import launcher
    from hftk.planning import plan
    from hftk.training.fit import fit
    from hftk.training.memory import peak_memory

    launcher.keep_memory()
    name, *rest = flags
    recipe = load_recipe(name)
    with tempfile.TemporaryDirectory() as folder:
        data = made_up_rows(Path(folder) / "rows.jsonl")
        config = parse(
            recipe.CONFIG, [*rest, "--data.path", str(data), "--output", str(Path(folder) / "out")]
        )
        task = recipe.TASK(config)
        splits = hftk.load_splits(config.data, task)
        warm_up(adapted=config.model.adapter.method != "none")
        before = psutil.Process().memory_info().rss
        model, tokenizer = hftk.load_model(config.model, task, splits, seed=0)
        trained = fit(task, model, tokenizer, splits, config)
        after = peak_memory()
    precision = next(
        (c.split()[1] for c in trained.choices if c.startswith("train.precision: ")), config.train.precision
    )
    made = plan(config, task, precision=precision)
    print(
        json.dumps(
            {
                "flags": flags,
                "precision": precision,
                "planned_bytes": made.peak,
                "measured_bytes": after - before,
                "ratio": round(made.peak / (after - before), 4),
                "memory": made.memory,
            }
        )
    )


def warm_up(adapted: bool) -> None:
    """Load what a run loads only at its first step: the Trainer, and the libraries behind matrix products and
    adapters."""
    import torch
    import transformers

    assert transformers.Trainer
    if adapted:
        import peft

        assert peft.LoraConfig  # which draws bitsandbytes in
    weight = torch.randn(64, 64, requires_grad=True)
    (torch.randn(64, 64) @ weight).sum().backward()
    torch.optim.AdamW([weight]).step()


def made_up_rows(path: Path) -> Path:
    """Rows of made-up words that a tokenizer trained on them knows whole: sources longer than any block here,
    targets of 58 words."""
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(800)]
    with path.open("w", encoding="utf-8") as file:
        for row in range(48):
            text = " ".join(chance.choices(words, k=1500))
            target = " ".join(chance.choices(words, k=58))
            file.write(
                json.dumps(
                    {
                        "text": text,
                        "label": "even" if row % 2 == 0 else "odd",
                        "document": text,
                        "summary": target,
                    }
                )
                + "\n"
            )
    return path


if __name__ == "__main__":
    main()
