"""``hftk export``: an adapter worked into the full-precision weights below it, or a model in another format,
and the proof on real rows that it still says the same."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hftk.cli.export_check import ROWS, Said, ask, compare, recompute
from hftk.cli.model_folder import all_at_once, check_model, say, task_of, wrong
from hftk.cli.output_file import find_folder
from hftk.config import DataConfig, InputError, Problem
from hftk.models.adapter_files import QUANTIZATION, ROUNDED, base_name, has_adapter, read_base_config

EXAMPLES = """\
examples:
  hftk export out/bert_lora --output out/bert_merged
  hftk export out/gpt2_lora --output out/gpt2_merged --data held_out.txt
  hftk export out/gpt2_clm --output out/gpt2_gguf --format gguf --gguf_type q8_0
  hftk export out/bert_classification --output out/bert_int8 --format int8

safetensors: the merged model, for transformers and every hftk command. int8: for hftk predict and evaluate on
a CPU. gguf: one file for llama.cpp, of GPT-2, Llama, Mistral and Qwen 2. onnx: the forward pass, from token
ids to logits, for onnxruntime. An adapter that was trained on weights in 8 or 4 bits is merged into the same
weights in float32; one that was started by loftq into these weights as they were rounded, for which it makes
up. What was written is read again and compared with the unmerged model in float32 on rows of the run's own
data (or of --data); what was found is in export.json and record.json."""
EXPORT = "export.json"
FORMATS = ("safetensors", "int8", "gguf", "onnx")
TOLERANCES = {
    "safetensors": 1e-4,
    "onnx": 1e-3,
    "int8": 0.15,
    "f32": 1e-3,
    "f16": 0.01,
    "bf16": 0.1,
    "q8_0": 0.1,
}
"""Format (of GGUF: type) to the largest difference of two logits, as a share of the largest logit where that
is above 1. What rounds weights is held to catch a wrong layout, which gives other logits altogether."""
KEPT = ("record.json", "config.yaml", "generation_config.json")
"""Files of the run that are copied: by them the other commands know the task and its settings."""


def add_flags(parser: ArgumentParser) -> None:
    """What ``hftk export`` takes."""
    parser.add_argument("dir", metavar="DIR", help="output folder of a run, or the folder of another model")
    parser.add_argument(
        "--output", required=True, metavar="DIR2", help="a new or empty folder for what is written"
    )
    parser.add_argument(
        "--data", metavar="PATH", help="rows to compare on (default: those that the run was judged on)"
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="safetensors", help="what is written (default: %(default)s)"
    )
    parser.add_argument(
        "--gguf_type",
        choices=("f32", "f16", "bf16", "q8_0"),
        default="f16",
        help="how GGUF holds matrices (default: %(default)s)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="SHARE",
        help=(
            "largest difference of two logits, as a share of the largest one (default: safetensors 1e-4, onnx"
            " 1e-3, int8 0.15; gguf f32 1e-3, f16 0.01, bf16 and q8_0 0.1)"
        ),
    )


def export(given: Namespace) -> int:
    """Run the command and return its exit code.

    Raises: InputError: nothing to merge, an adapter that cannot be merged, a base that is gone or quantized
        itself, a model that the format
            does not know, an output that is in use, rows that cannot be read.
        RuntimeError: what was written says something else; nothing is left in ``--output``.
    """
    _, _, output, *_ = all_at_once(
        lambda: check_model(given.dir, "export"),
        lambda: _check_source(Path(given.dir).expanduser(), given.format),
        lambda: find_folder(given.output, [given.data]),
        lambda: _check_tolerance(given.tolerance),
        lambda: _check_packages(given.format),
    )
    from hftk.config import ModelConfig
    from hftk.models.load import load_trained
    from hftk.models.weights import load_adapted, load_tokenizer

    folder = Path(given.dir).expanduser()
    with contextlib.redirect_stdout(sys.stderr), _staging(output) as staging:
        task = task_of(given.dir)
        rows, source = _rows(given, task)
        found: dict[str, Any] = {"format": given.format, "rows": len(rows), "data": source}
        model: Any
        if has_adapter(folder):
            config = ModelConfig(name=given.dir)
            model, tokenizer = load_adapted(config, task.auto_model, quantized=False), load_tokenizer(config)
            said = ask(task, model, tokenizer, rows)
            model = model.merge_and_unload().eval()
            bits = (vars(model.config).pop(QUANTIZATION, None) or {}).get("bits")
            rounded = vars(model.config).pop(ROUNDED, None) is not None
            found |= {
                "adapter": str(folder),
                "base": base_name(folder)[0],
                **({"trained_in_bits": bits} if bits else {}),
                **({"base_rounded": True} if rounded else {}),
            }
        else:
            model, tokenizer = load_trained(given.dir, auto_model=task.auto_model)
            said = ask(task, model, tokenizer, rows)
            found["model"] = str(folder)
        _write(given, model, tokenizer, staging, said)
        if given.format != "gguf":  # it holds the tokenizer, and files beside it would be mixed with that
            tokenizer.save_pretrained(staging)
        again = _read_again(given.format, task, tokenizer, rows, staging, said)
        kind = given.gguf_type if given.format == "gguf" else given.format
        found |= compare(said, again, TOLERANCES[kind] if given.tolerance is None else given.tolerance)
        if not found["difference"] <= found["tolerance"]:
            raise RuntimeError(
                f"the exported model computes something else: logits differ by {found['difference']:.3g},"
                f" {found['tolerance']:.3g} is allowed (--tolerance)"
            )
        found["bytes"] = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
        _keep(folder, staging, found)
    print(
        f"{output}: logits on {len(rows)} rows differ by at most {found['difference']:.2g} from float32"
        f" ({found['tolerance']:.2g} is allowed)"
        + (f", {found['same_texts']} of {found['texts']} texts are the same" if "texts" in found else "")
        + f"; {found['bytes'] / 1e6:,.1f} MB"
    )
    return 0


def _write(given: Namespace, model: Any, tokenizer: Any, folder: Path, said: Said) -> None:
    """The model in its format; of ONNX the graph of the call that the task makes."""
    if given.format == "safetensors":
        model.save_pretrained(folder)
    elif given.format == "int8":
        from hftk.models import export_int8

        export_int8.save(export_int8.quantize(model), folder)
    elif given.format == "gguf":
        from hftk.models import export_gguf

        export_gguf.write(model, tokenizer, folder / export_gguf.FILE, given.gguf_type)
    else:
        from hftk.models import export_onnx

        export_onnx.write(model, said.inputs[0], folder / export_onnx.FILE)
        model.config.save_pretrained(folder)


def _read_again(kind: str, task: Any, tokenizer: Any, rows: Any, folder: Path, said: Said) -> Said:
    """What the written model says, read as others will read it."""
    if kind == "onnx":
        from hftk.models import export_onnx

        return recompute(said, export_onnx.Session(folder / export_onnx.FILE))
    from hftk.models.load import load_trained

    return ask(task, load_trained(str(folder), auto_model=task.auto_model)[0], tokenizer, rows)


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


def _check_source(folder: Path, kind: str) -> None:
    if not folder.is_dir():
        raise wrong(f"expected the output folder of a run, found no folder {folder}", "check the spelling")
    if has_adapter(folder):
        _check_adapter(folder)
        return
    if kind == "safetensors":
        message = f"expected an adapter in {folder}, found a whole model: there is nothing to merge"
        raise wrong(message, "use the folder as it is, or add --format int8, gguf or onnx")
    if not (folder / "model.safetensors").is_file() and not any(folder.glob("*.safetensors.index.json")):
        message = f"expected weights in float32 (model.safetensors) in {folder}, found none"
        raise wrong(message, "name the folder that a run or hftk export wrote")
    _check_unquantized(folder)


def _check_adapter(folder: Path) -> None:
    made = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if made.get("peft_type") == "PROMPT_TUNING":
        raise wrong(
            "the vectors of prompt_tuning stand before the input, and cannot be merged into weights",
            "use the folder as it is",
        )
    from importlib.util import find_spec

    if ROUNDED in read_base_config(folder) and find_spec("bitsandbytes") is None:
        message = (
            f"the adapter in {folder} belongs to weights that bitsandbytes rounds, and it is not installed"
        )
        raise InputError(Problem(setting="dir", message=message, fix='pip install "hftk[quantize]"'))
    name, _ = base_name(folder)
    if _is_quantized(Path(name)):
        message = (
            f"the model below the adapter, {name}, is quantized itself: a merge would round the adapter away"
        )
        raise wrong(
            message,
            "write the name of its full-precision original into base_model_name_or_path of"
            f" {folder / 'adapter_config.json'}",
        )


def _check_unquantized(folder: Path) -> None:
    if _is_quantized(folder):
        raise wrong(
            f"the weights in {folder} are quantized", "name the folder of the full-precision original"
        )


def _is_quantized(folder: Path) -> bool:
    settings = folder / "config.json"
    made: Mapping[str, Any] = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    return bool(made.get("quantization_config"))


def _check_tolerance(value: float | None) -> None:
    if value is not None and not 0 <= value < 1:
        message = f"expected a share of the largest logit, 0 <= tolerance < 1, found {value}"
        raise InputError(Problem(setting="tolerance", message=message))


def _check_packages(kind: str) -> None:
    from importlib.util import find_spec

    problems: list[Problem] = []
    if kind == "gguf" and find_spec("gguf") is None:
        problems.append(
            Problem(setting="format", message="gguf is not installed", fix='pip install "hftk[gguf]"')
        )
    if kind == "onnx":
        from hftk.models import export_onnx

        problems += export_onnx.find_problems()
    if problems:
        raise InputError(*problems)


@contextlib.contextmanager
def _staging(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` that becomes it when all went well, and else is gone."""
    staging = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        yield staging
        if output.is_dir():
            output.rmdir()
        staging.replace(output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _keep(source: Path, staging: Path, found: Mapping[str, Any]) -> None:
    """The run's own files beside what was written, and what the comparison found."""
    for name in KEPT:
        if (source / name).is_file() and not (staging / name).exists():
            shutil.copy2(source / name, staging / name)
    record = staging / "record.json"
    if record.is_file():
        values = json.loads(record.read_text(encoding="utf-8"))
        text = json.dumps({**values, "export": found}, ensure_ascii=False, indent=1)
        record.write_text(text + "\n", encoding="utf-8")
    (staging / EXPORT).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    say(f"what was compared is in {EXPORT}")
