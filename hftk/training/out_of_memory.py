"""An error that says that memory ran out, with the settings that need less of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hftk.config import RunConfig
from hftk.config.problems import OutOfMemory, is_out_of_memory


@contextmanager
def explain_oom(config: RunConfig) -> Iterator[None]:
    """Inside, an error of torch that says that memory ran out becomes :class:`OutOfMemory` with what to type.

    Linux may also end a process that uses more main memory than there is by a signal, which no program can
    catch.
    """
    try:
        yield
    except BaseException as error:
        if not is_out_of_memory(error) or isinstance(error, OutOfMemory):
            raise
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        ways = "\n".join(f"    {way}" for way in suggest_settings(config))
        raise OutOfMemory(f"out of memory in training: {reason}\nLess memory takes:\n{ways}") from None


def suggest_settings(config: RunConfig) -> list[str]:
    """Settings that need less memory for the same run, the mildest first."""
    train, ways = config.train, []
    if train.per_device_batch_size > 1:
        half = train.per_device_batch_size // 2
        rows = train.global_batch_size
        step = (
            f" --train.global_batch_size {rows}"
            if rows
            else ""
            if train.global_batch_tokens
            else " --train.global_batch_size N"
        )
        ways.append(f"--train.per_device_batch_size {half}{step}  (the same rows in a step, in more pieces)")
    if not train.gradient_checkpointing:
        ways.append("--train.gradient_checkpointing true")
    if config.model.adapter.method == "none" and config.model.name is not None:
        ways.append("--model.adapter.method lora")
    if config.model.adapter.method != "none" and config.model.quantization.bits is None:
        ways.append("--model.quantization.bits 4")
    return [
        *ways,
        "--train.max_length N",
        "hftk plan RECIPE, with the same settings, counts what each of them needs",
    ]
