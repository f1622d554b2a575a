"""Time the character-level recipe beside nanoGPT's own train.py: same data, same model size, same steps, same
cores.

    python benchmarks/nanogpt.py --nanogpt DIR --data DIR [--rounds 3]

DIR of --nanogpt is a checkout of github.com/karpathy/nanoGPT; DIR of --data holds train.txt and
validation.txt of tiny Shakespeare. Whole processes are timed from outside, in turn, start-up and final
evaluation included; nothing of nanoGPT is imported here. The loss of both is nats per character over all
validation characters in non-overlapping blocks of 64. Writes results/nanogpt.json.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hftk.launch.environment import environment

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "recipes" / "gpt2_clm.py"
CONFIGS = HERE.parent / "recipes" / "configs"
# The command for a CPU in nanoGPT's README.
SETTINGS = [
    "config/train_shakespeare_char.py",
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=1",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
]
# Its checkpoint, judged in its own code: every validation character once.
JUDGE = """
import numpy as np, torch
from model import GPT, GPTConfig
saved = torch.load("out-shakespeare-char/ckpt.pt", map_location="cpu", weights_only=True)
model = GPT(GPTConfig(**saved["model_args"])); model.load_state_dict(saved["model"]); model.eval()
data = torch.from_numpy(np.fromfile("data/shakespeare_char/val.bin", dtype=np.uint16).astype(np.int64))
blocks = (len(data) - 1) // 64
x, y = data[: blocks * 64].view(-1, 64), data[1 : blocks * 64 + 1].view(-1, 64)
with torch.no_grad():
    total = sum(model(a, b)[1].double() * b.numel() for a, b in zip(x.split(64), y.split(64)))
print(float(total / y.numel()))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(asked.nanogpt, asked.data.resolve(), asked.rounds, Path(folder))
    path = HERE.parent / "results" / "nanogpt.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written to {path}")


def measure(nanogpt: Path, data: Path, rounds: int, folder: Path) -> dict[str, object]:
    theirs = folder / "nanogpt"
    shutil.copytree(nanogpt, theirs, ignore=shutil.ignore_patterns(".git", "out*"))
    prepare(theirs, data)
    systems = {
        "nanogpt": ([sys.executable, "train.py", *SETTINGS], theirs),
        "hftk": (recipe("shakespeare_char", data, folder), folder),
        "hftk_better": (recipe("shakespeare_char_better", data, folder), folder),
    }
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(rounds):
        for name, (command, where) in systems.items():
            started = time.perf_counter()
            done = subprocess.run(command, cwd=where, capture_output=True, text=True)
            seconds[name].append(time.perf_counter() - started)
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
            print(f"round {number + 1}: {name} {seconds[name][-1]:.1f} s", flush=True)
    judged = subprocess.run(
        [sys.executable, "-c", JUDGE], cwd=theirs, capture_output=True, text=True, check=True
    )
    loss = {"nanogpt": float(judged.stdout.splitlines()[-1])}
    training = {}
    for name in ("hftk", "hftk_better"):
        record = json.loads((folder / name / "record.json").read_text(encoding="utf-8"))
        loss[name] = next(
            s["value"] for s in record["scores"] if s["name"] == "loss" and s["when"] == "after"
        )
        training[name] = record["seconds"]["train"]
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds["nanogpt"], strict=True))
        for name in ("hftk", "hftk_better")
    }
    return {
        "command": "python benchmarks/nanogpt.py --nanogpt DIR --data DIR",
        "what": (
            "tiny Shakespeare by characters, 4 layers, 4 heads, width 128, blocks of 64, 12 a step, 2000"
            " steps"
        ),
        "seconds_of_whole_process": {name: [round(s, 1) for s in values] for name, values in seconds.items()},
        "time_ratio_to_nanogpt": {name: round(value, 3) for name, value in ratios.items()},
        "loss_nats_per_character": {name: round(value, 4) for name, value in loss.items()},
        "loss_ratio_to_nanogpt": {name: round(loss[name] / loss["nanogpt"], 4) for name in ratios},
        "seconds_of_training_alone": training,
        **environment(),
    }


def prepare(theirs: Path, data: Path) -> None:
    """nanoGPT's own preparation, on the text we have (it would download it)."""
    folder = theirs / "data" / "shakespeare_char"
    text = "".join((data / f"{split}.txt").read_text(encoding="utf-8") for split in ("train", "validation"))
    (folder / "input.txt").write_text(text, encoding="utf-8")
    script = re.sub(
        r"^import requests.*$", "", (folder / "prepare.py").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    (folder / "prepare.py").write_text(script, encoding="utf-8")
    subprocess.run([sys.executable, "prepare.py"], cwd=folder, check=True, capture_output=True)


def recipe(config: str, data: Path, folder: Path) -> list[str]:
    name = config.replace("shakespeare_char", "hftk")
    return [
        sys.executable,
        str(RECIPE),
        "--config",
        str(CONFIGS / f"{config}.yaml"),
        "--data.path",
        str(data),
        "--output",
        str(folder / name),
        "--overwrite",
    ]


if __name__ == "__main__":
    main()
