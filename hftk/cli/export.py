"""``hftk export``: work an adapter into the full-precision weights below it, and prove on real rows that nothing changed."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hftk.adapter_files import QUANTIZATION, base_name, has_adapter
from hftk.cli.trained import all_at_once, check_model, say, task_of, wrong
from hftk.config import DataConfig, InputError, Problem

EXAMPLES = """\
examples:
  hftk export out/bert_lora --output out/bert_merged
  hftk export out/gpt2_lora --output out/gpt2_merged --data held_out.txt

An adapter that was trained on weights in 8 or 4 bits is merged into the same weights in float32. The merged model and the
unmerged one, both in float32, are compared on rows of the run's own data (or of --data); what was found is in export.json."""
EXPORT = "export.json"
TOLERANCE = 1e-4
"""Largest difference of two logits, as a share of the largest logit where that is above 1."""
ROWS = 8
KEPT = ("record.json", "config.yaml", "generation_config.json")
"""Files of the run that are copied: by them the other commands know the task and its settings."""


def add_flags(parser: ArgumentParser) -> None:
    """What ``hftk export`` takes."""
    parser.add_argument("dir", metavar="DIR", help="output folder of a run with an adapter")
    parser.add_argument("--output", required=True, metavar="DIR2", help="a new or empty folder for the merged model")
    parser.add_argument("--data", metavar="PATH", help="rows to compare on (default: those that the run was judged on)")


def export(given: Namespace) -> int:
    """Run the command and return its exit code.

    Raises:
        InputError: no adapter in DIR, one that cannot be merged, a base that is gone or quantized itself, an output that is in
            use, rows that cannot be read.
        RuntimeError: the merged model computes something else; nothing is left in ``--output``.
    """
    all_at_once(
        lambda: check_model(given.dir, "export"),
        lambda: _check_adapter(Path(given.dir).expanduser()),
        lambda: _check_output(Path(given.output).expanduser()),
    )
    import torch

    from hftk.config import ModelConfig
    from hftk.weights import load_adapted, load_tokenizer

    folder, output = Path(given.dir).expanduser(), Path(given.output).expanduser()
    with contextlib.redirect_stdout(sys.stderr):
        task = task_of(given.dir)
        rows, source = _rows(given, task)
        config = ModelConfig(name=given.dir)
        tokenizer = load_tokenizer(config)
        model: Any = load_adapted(config, task.auto_model, quantized=False)
        with torch.no_grad():
            unmerged = _logits(task, model, tokenizer, rows)
            merged = model.merge_and_unload().eval()
            found = compare(unmerged, _logits(task, merged, tokenizer, rows))
    if found["difference"] > found["tolerance"]:
        raise RuntimeError(
            f"the merged model computes something else: logits differ by {found['difference']:.3g}, {found['tolerance']:.3g} is allowed"
        )
    found = {"adapter": str(folder), "base": base_name(folder)[0], "rows": len(rows), "data": source, **found}
    bits = (vars(merged.config).pop(QUANTIZATION, None) or {}).get("bits")
    if bits:
        found["trained_in_bits"] = bits
    _write(merged, tokenizer, folder, output, found)
    print(
        f"{output}: logits on {len(rows)} rows differ by at most {found['difference']:.2g} (float32; {found['tolerance']:.2g} is allowed)"
    )
    return 0


def compare(before: Any, after: Any) -> dict[str, Any]:
    """How far two lists of logits lie apart, each (batch, ..., outputs); ``tolerance`` is what may be."""
    difference = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    largest = max(float(a.abs().max()) for a in before)
    same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(before, after, strict=True))
    count = sum(a[..., 0].numel() for a in before)
    return {
        "difference": difference,
        "largest_logit": largest,
        "tolerance": TOLERANCE * max(1.0, largest),
        "same_choice": same / count,
    }


def _logits(task: Any, model: Any, tokenizer: Any, rows: Any) -> list[Any]:
    """The logits of each row, as the task runs the model: tensors of (1, ..., outputs)."""
    from hftk.model import default_length
    from hftk.tasks.vocabulary import whole_logits

    features = task.encode(rows, tokenizer, max_length=default_length(model.config), training=False)
    collate = task.collator(tokenizer, model, training=False)
    seen: list[Any] = []
    handle = model.register_forward_hook(lambda module, inputs, output: seen.append(output.logits.float()))
    try:
        with whole_logits(model):
            for number in range(min(len(features), ROWS)):
                task.outputs(model, collate([features[number]]))
    finally:
        handle.remove()
    return seen


def _rows(given: Namespace, task: Any) -> tuple[Any, str]:
    """Rows to compare on, and where they come from."""
    from hftk.data.load import load_splits, read_rows

    if given.data is not None:
        rows = read_rows(given.data, DataConfig(unicode=task.config.data.unicode), task)[0]
        return rows.select(range(min(ROWS, len(rows)))), given.data
    try:
        splits = load_splits(replace(task.config.data, streaming=False), task)
    except InputError as error:
        raise InputError(
            *error.problems,
            Problem(setting="data", message="the run's own rows cannot be read again", fix="add --data FILE"),
        ) from error
    name, rows = splits.held_out or ("train", splits.train)
    return rows.select(range(min(ROWS, len(rows)))), f"the run's {name} split"


def _check_adapter(folder: Path) -> None:
    if not folder.is_dir():
        raise wrong(f"expected the output folder of a run with an adapter, found no folder {folder}", "check the spelling")
    if not has_adapter(folder):
        raise wrong(
            f"expected an adapter in {folder}, found a whole model: there is nothing to merge",
            "use the folder as it is",
        )
    made = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if made.get("peft_type") == "PROMPT_TUNING":
        raise wrong(
            "the vectors of prompt_tuning stand before the input, and cannot be merged into weights",
            "use the folder as it is",
        )
    name, _ = base_name(folder)
    settings = Path(name) / "config.json"
    below: Mapping[str, Any] = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    if below.get("quantization_config"):
        message = f"the model below the adapter, {name}, is quantized itself: a merge would round the adapter away"
        raise wrong(
            message,
            f"write the name of its full-precision original into base_model_name_or_path of {folder / 'adapter_config.json'}",
        )


def _check_output(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            Problem(
                setting="output",
                message=f"expected a new or empty folder, found something in {folder}",
                fix="choose another --output",
            )
        )


def _write(model: Any, tokenizer: Any, source: Path, output: Path, found: Mapping[str, Any]) -> None:
    """The merged model beside its final place first, then moved there whole."""
    staging = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        for name in KEPT:
            if (source / name).is_file():
                shutil.copy2(source / name, staging / name)
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        record = staging / "record.json"
        if record.is_file():
            values = json.loads(record.read_text(encoding="utf-8"))
            record.write_text(
                json.dumps({**values, "export": found}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
            )
        (staging / EXPORT).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        if output.is_dir():
            output.rmdir()
        staging.replace(output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    say(f"merged model, tokenizer and {EXPORT} in {output}")
