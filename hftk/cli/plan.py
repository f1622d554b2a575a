"""``hftk plan``: memory, time and cost of a run before anything is loaded."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hftk.cli.model_folder import all_at_once, wrong
from hftk.config import InputError, Problem

if TYPE_CHECKING:
    from hftk.planning import Plan, Setup

EXAMPLES = """\
examples:
  hftk plan gpt2_clm --model.name openai-community/gpt2 --train.per_device_batch_size 8
  hftk plan gpt2_clm --model.name meta-llama/Llama-2-7b-hf --train.max_length 4096 \\
      --devices 8 --device a100-80gb --sharding fsdp --tokens 2e12
  hftk plan bert_classification --model.name google-bert/bert-large-uncased --device_memory 16GB --json

RECIPE is a recipe's name or file, and every setting that the recipe takes is taken too. Published models are
known by their Hub id with no network: GPT-2, Llama 2 and 3, Mistral, Qwen 2.5, BERT, RoBERTa, T5, BART, NLLB
and others."""
_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
FLAGS = (
    "devices",
    "device",
    "device_memory",
    "sharding",
    "tokens",
    "tokens_per_second",
    "utilization",
    "price_per_hour",
)


def add_flags(parser: ArgumentParser) -> None:
    """The flags of ``hftk plan``; those of the recipe are left to it."""
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="a recipe's name, such as gpt2_clm, or its file")
    add("--devices", type=int, default=1, metavar="N", help="devices, one process on each (default: 1)")
    add(
        "--device",
        metavar="NAME",
        help=(
            "kind of GPU, such as a100-80gb (an unknown name lists those there are). Default: what this"
            " machine has"
        ),
    )
    add("--device_memory", metavar="SIZE", help="memory of each device, such as 80GB or 24GiB")
    add(
        "--sharding",
        default="none",
        metavar="WAY",
        help="none, ddp, fsdp, zero2 or zero3 (default: none; ddp on several devices)",
    )
    add(
        "--tokens",
        type=float,
        metavar="N",
        help=(
            "tokens of the training split, such as 2e9, for the length of the run where --train.max_steps is"
            " not set"
        ),
    )
    add(
        "--tokens_per_second",
        type=float,
        metavar="X",
        help="measured speed over all devices (in record.json of an earlier run)",
    )
    add(
        "--utilization",
        type=float,
        metavar="SHARE",
        help="share of the peak of --device that training reaches (default: 0.4)",
    )
    add("--price_per_hour", type=float, metavar="Y", help="price of one device for an hour")
    add("--json", action="store_true", help="print the plan as JSON")


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of ``hftk plan`` itself, and those of the recipe: its flags with the values behind them."""
    own: list[str] = []
    rest: list[str] = []
    into = own
    for word in words:
        if word.startswith("--"):
            into = own if word[2:].partition("=")[0] in (*FLAGS, "json", "help") else rest
        elif word == "-h":
            into = own
        into.append(word)
    return own, rest


def run_plan(given: Namespace, flags: Sequence[str]) -> int:
    """Print the plan of a recipe under ``flags``; where it does not fit, what would.

    Raises:
        InputError: no such recipe, wrong settings of the recipe or of the plan, an unknown model.
    """
    recipe, setup = all_at_once(lambda: load_recipe(given.recipe), lambda: _setup(given))
    from hftk.config.parse import parse
    from hftk.launch.output_folder import check_paths
    from hftk.planning import plan, remedies

    config = parse(recipe.CONFIG, flags, prog=f"hftk plan {given.recipe}")
    check_paths(config)
    task = recipe.TASK(config)
    with contextlib.redirect_stdout(sys.stderr):
        made = plan(config, task, setup)
        ways = [] if made.fits else remedies(config, task, setup)
    if given.json:
        print(json.dumps(as_json(made, ways), indent=1, ensure_ascii=False))
    else:
        print(as_text(made, ways))
    return 0


def load_recipe(name: str) -> ModuleType:
    """The module of a recipe by its name or file; it exposes ``TASK`` and ``CONFIG``.

    Raises:
        InputError: there is none of that name; the file is no recipe.
    """
    path = Path(name).expanduser()
    folder = recipes_folder()
    if path.suffix != ".py" and folder is not None:
        path = folder / f"{name}.py"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.py")) if folder else []
        near = get_close_matches(path.stem, known, n=1)
        raise wrong(
            f"expected a recipe, found none called {name}",
            f"did you mean {near[0]}?" if near else f"use {', '.join(known)}, or a recipe's file",
        )
    spec = importlib.util.spec_from_file_location(f"_recipe_{re.sub(r'[^0-9a-zA-Z]', '_', path.stem)}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    missing = [part for part in ("TASK", "CONFIG") if not hasattr(module, part)]
    if missing:
        raise wrong(
            f"expected {' and '.join(missing)} in {path}: it is no recipe",
            "begin from one: such as recipes/gpt2_clm.py",
        )
    return module


def recipes_folder() -> Path | None:
    """Where the recipes are: in the installed package, or beside it in a checkout."""
    package = Path(import_module("hftk").__file__ or "").parent
    return next((p for p in (package / "recipes", package.parent / "recipes") if p.is_dir()), None)


def _setup(given: Namespace) -> Setup:
    from hftk.planning import Setup

    values = {name: getattr(given, name) for name in FLAGS}
    if values["device_memory"] is not None:
        values["device_memory"] = read_size(values["device_memory"])
    setup = Setup(**values)
    problems = list(setup.problems())
    if problems:
        raise InputError(*problems)
    return setup


def read_size(text: str) -> float:
    """``80GB``, ``24GiB`` or a number of bytes, as bytes; InputError for anything else."""
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?i?b?)\s*", text.lower())
    unit = found[2] if found else None
    if unit is not None and unit not in _UNITS:
        unit += "b"
    try:
        return float(found[1]) * _UNITS[unit]  # type: ignore[index]
    except (TypeError, ValueError, KeyError):
        message = f"expected a size such as 80GB or 24GiB, found {text}"
        raise InputError(Problem(setting="device_memory", message=message)) from None


def as_json(made: Plan, ways: Sequence[tuple[str, Plan]]) -> dict[str, Any]:
    """The plan as plain values."""
    from hftk.planning.compute import SOURCES

    values = {**asdict(made), "peak_memory_bytes": made.peak, "fits": made.fits}
    values["remedies"] = [{"settings": typed, "peak_memory_bytes": other.peak} for typed, other in ways]
    return {**values, "sources": list(SOURCES)}


def as_text(made: Plan, ways: Sequence[tuple[str, Plan]]) -> str:
    """The plan as people read it."""
    from hftk.planning.compute import SOURCES

    model, batch, setup = made.model, made.batch, made.setup
    devices = "1 device" if setup.devices == 1 else f"{setup.devices} devices, {setup.sharding}"
    head = [
        (
            f"model        {model['architecture']}, {model['parameters']:,} parameters,"
            f" {model['parameters_trained']:,} trained"
        ),
        f"devices      {devices}, {_gigabytes(made.device_memory)} each"
        + (f" ({setup.device})" if setup.device else ""),
        f"micro-batch  {batch['per_device_rows']} rows, {batch['tokens']:,} tokens, {batch['precision']}"
        + (", gradient checkpointing" if batch["gradient_checkpointing"] else ""),
        (
            f"step         {batch['rows_per_step']} rows, {batch['tokens_per_step']:,} tokens,"
            f" {batch['accumulation']} micro-batch{'es' if batch['accumulation'] > 1 else ''} on each device"
        ),
    ]
    memory = [(f"  {kind}", size) for kind, size in made.memory.items() if size >= 10**5]
    phases = [(phase, size) for phase, size in made.phases.items()]
    lines = ["memory of each device", *_rows([*memory, *phases])]
    largest = (
        ""
        if made.largest_batch is None
        else f"; the largest --train.per_device_batch_size is {made.largest_batch:,}"
    )
    verdict = ("it fits" if made.fits else f"IT DOES NOT FIT into {_gigabytes(made.device_memory)}") + largest
    if ways:
        verdict += "\nthese would fit:\n" + "\n".join(
            f"  {typed}  ({_gigabytes(other.peak)})" for typed, other in ways
        )
    parts = [
        *head,
        "",
        *lines,
        verdict,
        "",
        *_time(made),
        "",
        *made.hints,
        *(f"assumed: {line}" for line in made.assumptions),
        "sources:",
        *(f"  {line}" for line in SOURCES),
    ]
    return "\n".join(parts)


def _time(made: Plan) -> list[str]:
    run, flops = made.run, made.flops
    formula = f" (formula: {flops['formula_per_token']:.3g})" if flops["formula_per_token"] else ""
    lines = [f"operations   {flops['training_per_token']:.3g} for each token of training{formula}"]
    shown: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("steps", "steps", "{:,.0f}".format),
        ("tokens", "tokens", "{:,.0f}".format),
        ("tokens_per_second", "speed", "{:,.0f} tokens per second".format),
        ("seconds", "time", _duration),
        ("device_hours", "devices'", "{:,.1f} hours together".format),
        ("cost", "cost", "{:,.2f}".format),
    )
    for name, title, write in shown:
        value = run.get(name)
        if value is not None:
            lines.append(f"{title:<13}{write(value)}")
    if run.get("steps") is None:
        lines.append("for the length of the run give --train.max_steps or --tokens")
    elif run.get("seconds") is None:
        lines.append("for its time give --tokens_per_second or --device")
    return lines


def _rows(rows: Sequence[tuple[str, int]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {_gigabytes(size):>10}" for name, size in rows]


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:,.1f} days"
