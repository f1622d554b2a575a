"""Which model a command was given: is it there, what is missing, and the loading of it."""

from __future__ import annotations

import contextlib
import difflib
import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hftk.config import InputError, ModelConfig, Problem
from hftk.config.evaluation import MOST_RESAMPLES
from hftk.launch.files import find_name_problem
from hftk.models.adapter_files import BASE_CONFIG, base_name, has_adapter, saved_config
from hftk.redaction import redact_text
from hftk.tasks.table import load_task, task_of_model

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
DEVICE_MAPS = get_args(get_type_hints(ModelConfig)["device_map"])
"""Values of ``model.device_map``."""


def check_model(name: str, command: str) -> None:
    """Find what is wrong with a folder before anything is loaded; a Hub id is left to :func:`load`.

    Raises: InputError: no such folder, or one without weights; it says what is there, and what to type
        (``command`` is the
            hftk command that was typed).
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if has_adapter(path):
            base_name(path)
        described = has_adapter(path) or (path / "config.json").is_file()
        whole = described and any(next(path.glob(ending), None) for ending in WEIGHTS)
        if whole or next(path.glob("*.gguf"), None):
            return
        inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        made = [
            config.parent for pattern in ("*/config.json", "*/*/config.json") for config in path.glob(pattern)
        ]
        made.sort(key=lambda folder: folder.stat().st_mtime)
        fix = " or ".join(f"hftk {command} {shlex.quote(str(folder))}" for folder in made[:-4:-1])
        raise wrong(
            f"expected config.json and weights in {path}, found {inside}", fix or "name the --output of a run"
        )
    if path.is_file():
        if path.suffix != ".gguf":
            raise wrong(
                f"expected a folder, found the file {path}", f"hftk {command} {shlex.quote(str(path.parent))}"
            )
    elif (
        name.count("/") > 1
        or name.startswith((".", "/", "~"))
        or "\\" in name
        or (path.parent.name and path.parent.is_dir())
    ):
        fix = _near(path) or "name the --output folder of a run, or a Hub id"
        raise wrong(f"expected the folder of a model, found nothing at {path}", fix)


def task_name(folder: str) -> str:
    """The task of a run's folder by its record; of any other model by the head that its config names."""
    from hftk.reports.record import RECORD, load_record

    path = Path(folder).expanduser()
    if (path / RECORD).is_file():
        return load_record(path).task
    made: dict[str, Any] = {}
    settings = path / (BASE_CONFIG if has_adapter(path) else "config.json")
    if settings.is_file():
        with contextlib.suppress(
            ValueError, AttributeError
        ):  # a damaged file has its error when the model is loaded
            made = dict(json.loads(settings.read_text(encoding="utf-8")).items())
    elif not path.exists():
        from transformers import AutoConfig

        from hftk.models.hub_names import UNLOADABLE, from_pretrained

        with contextlib.suppress(*UNLOADABLE):  # no such id, no network: as above
            made = from_pretrained(AutoConfig, folder).to_dict()
    return task_of_model(made)


def task_of(folder: str, settings: Callable[[Any], Any] = lambda config: config) -> Any:
    """The task object of a run's folder with the run's own settings, after ``settings`` has changed them.

    Raises:
        InputError: a task that this version does not know, a folder whose settings cannot be read.
    """
    from transformers import AutoConfig

    from hftk.config.parse import load_config
    from hftk.models.hub_names import UNLOADABLE, explain, from_pretrained

    path = Path(folder).expanduser()
    task_class, config_class = load_task(task_name(folder))
    config = config_class()
    if (path / "config.yaml").is_file():
        config = load_config(config, path / "config.yaml")
    config = settings(config)
    if has_adapter(path):
        made = saved_config(path)
        return task_class(config) if made is None else task_class.from_model_config(config, made)
    if path.exists() and not (path / "config.json").is_file():
        return task_class(config)
    try:
        made = from_pretrained(AutoConfig, path if path.exists() else folder)
    except UNLOADABLE as error:
        if not path.exists():
            return task_class(config)  # loading tells what is wrong with the name
        raise InputError(Problem(setting="", **explain(str(path), error))) from error
    return task_class.from_model_config(config, made)


def takes_pairs(folder: str, task: Any) -> bool | None:
    """Whether the run in ``folder`` was trained on a second input of ``task``; None where no record says
    so."""
    from hftk.reports.record import RECORD, load_record

    path = Path(folder).expanduser()
    columns = load_record(path).data.get("columns") if (path / RECORD).is_file() else None
    return any(role in columns for role in task.inputs[1:2]) if columns else None


def add_device_map(add: Callable[..., Any]) -> None:
    """The flag of the commands that compute with a model; ``add`` is ``add_argument``."""
    add(
        "--device_map",
        choices=DEVICE_MAPS,
        help=(
            "how to spread a large model over several GPUs, and main memory where they are full: as"
            " --model.device_map of recipes (default: as the run had it)"
        ),
    )


def device_map_of(folder: str) -> str:
    """``model.device_map`` of the run in ``folder``: a model that was too large for one GPU still is."""
    path = Path(folder).expanduser() / "config.yaml"
    if not path.is_file():
        return "none"
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["device_map"]
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        yaml.YAMLError,
    ):  # of an earlier version, or not a run's
        return "none"
    return found if found in DEVICE_MAPS else "none"


def load(
    name: str, auto_model: str = "AutoModelForCausalLM", device_map: str | None = None
) -> tuple[Any, Any]:
    """Model, on the GPU if there is one (on several by ``device_map``, default: as in training), and
    tokenizer. What loading has to say goes to stderr.

    Raises:
        InputError: it cannot be loaded.
    """
    import torch

    from hftk.models import device_map as placement
    from hftk.models.load import load_trained

    with contextlib.redirect_stdout(sys.stderr), _bars_for_terminals():
        try:
            loaded: Any = load_trained(
                name, auto_model=auto_model, device_map=device_map or device_map_of(name)
            )
        except InputError as error:
            fix = (
                _near(Path(name))
                or "name the --output folder of a run; for a Hub id check the spelling and the network"
            )
            told = [
                (
                    replace(p, setting="", fix=p.fix if has_adapter(name) else fix)
                    if p.setting == "model.name"
                    else p
                )
                for p in error.problems
            ]
            raise InputError(*told) from error
    model, tokenizer = loaded
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is not None and not placement.is_spread(model) and "cpu" not in placement.places(model):
        model.to(device)
        say(f"on {device}")
    return model, tokenizer


@contextlib.contextmanager
def _bars_for_terminals() -> Iterator[None]:
    """No progress bars of transformers where stderr is a file or a pipe."""
    from transformers.utils import logging

    hide = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if hide:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            logging.enable_progress_bar()


def add_overwrite(add: Callable[..., Any]) -> None:
    """The flag of the commands that write a file; ``add`` is ``add_argument``."""
    add(
        "--overwrite", action="store_true", help="let --output replace a file that this command did not write"
    )


def check_names(given: Namespace) -> None:
    """InputError for names of files and folders that no file system has, all of them at once."""
    values = [
        (name, getattr(given, name, None))
        for name in ("dir", "dir_a", "dir_b", "dirs", "recipe", "data", "file", "output")
    ]
    typed = [
        (name, text)
        for name, value in values
        for text in (value if isinstance(value, list) else [value])
        if text
    ]
    if problems := [found for name, text in typed if (found := find_name_problem(name, text))]:
        raise InputError(*problems)


def check_resamples(count: int) -> None:
    """InputError for a number of bootstrap resamples that is none, or takes for ever."""
    if not 1 <= count <= MOST_RESAMPLES:
        message = f"expected 1 to {MOST_RESAMPLES:,}, found {count:,}"
        raise InputError(Problem(setting="resamples", message=message, fix="use --resamples 10000"))


def all_at_once(*checks: Callable[[], Any]) -> list[Any]:
    """What each check returns; InputError with the problems of all of them."""
    results: list[Any] = []
    problems: list[Problem] = []
    for check in checks:
        try:
            results.append(check())
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*problems)
    return results


def say(line: str) -> None:
    """To stderr: stdout is for results."""
    print(redact_text(f"hftk: {line}"), file=sys.stderr)


def wrong(message: str, fix: str = "") -> InputError:
    """The error of one problem that is in no setting."""
    return InputError(Problem(setting="", message=message, fix=fix))


def _near(path: Path) -> str:
    """A folder that was probably meant."""
    beside = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    return f"did you mean {path.with_name(near[0])}?" if near else ""
