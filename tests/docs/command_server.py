"""Runs the commands of the pages without paying for their imports each time: imports once, then one fork for
each command.

    python command_server.py SOCKET HUB

A client (``shim.py``, under the names of the commands) sends its words, folder, environment and its three
standard streams, and gets the exit code. Recipes read the very flags of the page; then the run is made short
(``SHORT``), and nothing else changes. With ``HFTK_DOCS_CHECK`` in the environment the words are read by the
parser that would read them, and nothing is run.
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import os
import re
import runpy
import signal
import socket
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
SHORT: dict[str, Any] = {
    "data": {"max_rows": 160},
    "train": {"epochs": None, "max_steps": 2},
    "eval": {"resamples": 20, "max_rows": 12},
}
SHORT_TEXTS = {"generation": {"max_new_tokens": 4}}
MADE = {"model": {"vocab_size": 600}}
WARM = (
    "hftk.cli",
    "hftk.training.fit",
    "hftk.planning",
    "hftk.reports",
    "hftk.hub",
    "hftk.models.weights",
    "hftk.tasks.significance",
    "hftk.tasks.tfidf",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.bert.modeling_bert",
    "transformers.models.t5.modeling_t5",
    "transformers.models.marian.modeling_marian",
    "transformers.models.llama.modeling_llama",
    "transformers.models.encoder_decoder.modeling_encoder_decoder",
    "transformers.trainer",
    "accelerate.commands.launch",
    "datasets",
    "peft",
    "sklearn.linear_model",
    "sacrebleu",
    "bitsandbytes",
    "torch.distributed",
)


def shorten(config: Any) -> Any:
    """The same run with few rows, two steps and short outputs."""
    from hftk.config import override

    changes = [
        SHORT,
        *([MADE] if config.model.size is not None else []),
        *([SHORT_TEXTS] if config.generation.max_new_tokens else []),
    ]
    for change in changes:
        config = override(config, change)
    return config


def run_recipe(path: str, words: list[str]) -> None:
    import hftk.config.parse

    parse = hftk.config.parse.parse
    hftk.config.parse.parse = lambda *args, **kwargs: shorten(parse(*args, **kwargs))  # type: ignore[assignment]
    sys.argv = [path, *words]
    runpy.run_path(path, run_name="__main__")


def read_launch(words: list[str]) -> Any:
    """The words of ``accelerate launch`` as its own parser reads them."""
    from accelerate.commands.launch import launch_command_parser

    given = launch_command_parser().parse_args(words)
    if given.config_file and not Path(given.config_file).is_file():
        raise SystemExit(f"accelerate launch: there is no {given.config_file}")
    return given


def accelerate(words: list[str]) -> None:
    """``accelerate launch``: as many processes as its flags and config file ask for, each a fork of this
    one."""
    import yaml

    assert words[0] == "launch", words
    given = read_launch(words[1:])
    config = yaml.safe_load(Path(given.config_file).read_text()) if given.config_file else {}
    count = given.num_processes or config.get("num_processes") or 1
    if (
        count > 1 and not given.multi_gpu and config.get("distributed_type") != "MULTI_GPU"
    ):  # it may not do what it says
        os.execv(sys.executable, [sys.executable, "-m", "accelerate.commands.launch", *words[1:]])
    if count == 1:
        return run_recipe(given.training_script, given.training_script_args)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(count),
                LOCAL_WORLD_SIZE=str(count),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
                ACCELERATE_USE_CPU="true",
            )
            finish(lambda: run_recipe(given.training_script, given.training_script_args))
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(1 if any(codes) else 0)  # as accelerate launch has it


def hftk(words: list[str]) -> None:
    from hftk.cli import main

    sys.exit(main(words))


def python(words: list[str]) -> None:
    """``python FILE``, ``python -m hftk`` or a program on standard input; recipes are made short here too."""
    if words[:2] == ["-m", "hftk"]:
        return hftk_command(words[2:])
    if words:
        return run_recipe(words[0], words[1:])
    for recipe in sorted(Path("recipes").glob("*.py")):
        module = __import__(f"recipes.{recipe.stem}", fromlist=["CONFIG"])
        module.CONFIG = shorten(module.CONFIG)
    exec(compile(sys.stdin.read(), "page", "exec"), {"__name__": "__main__"})


hftk_command = hftk
PROGRAMS = {"accelerate": accelerate, "hftk": hftk, "python": python}


def check(program: str, words: list[str]) -> None:
    """Read the words as the program would, and run nothing."""
    if program == "accelerate" and words[0] == "launch":
        given = read_launch(words[1:])
        check_recipe(given.training_script, given.training_script_args)
    elif program == "hftk":
        check_hftk(words)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        missing = [word for word in words if "=" not in word and word not in targets]
        assert not missing, f"the Makefile has no {missing}"
    elif program == "hf":
        check_hf(words)
    elif program in ("pip", "python") and "install" in words:
        check_extras(words)
    elif program == "python" and words[:1] != ["-m"]:
        assert Path(words[0]).is_file(), f"there is no {words[0]}"
        if words[0].startswith("recipes/"):
            check_recipe(words[0], words[1:])


def check_recipe(path: str, words: list[str]) -> None:
    from hftk.config.parse import parse

    parse(runpy.run_path(path)["CONFIG"], words)


def check_hftk(words: list[str]) -> None:
    from hftk import cli
    from hftk.config.parse import parse

    parser, _ = cli._parsers()
    dotted: list[str] = []
    if words[0] in ("evaluate", "plan"):
        words, dotted = (cli._split_dotted if words[0] == "evaluate" else cli.plan.split_words)(words)
    parser.parse_args(words)
    if words[0] == "plan":
        recipe = cli.plan.load_recipe(words[1])
        parse(recipe.CONFIG, dotted)


def check_hf(words: list[str]) -> None:
    """Ask the command ``hf`` for help on these words: it reads them all before it answers."""
    from huggingface_hub.cli.hf import app

    sys.argv = ["hf", *words, "--help"]
    app()


def check_extras(words: list[str]) -> None:
    """Extras of this package that are asked for are there."""
    try:
        import tomllib
    except ImportError:  # Python 3.10
        return
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        for extras in re.findall(r"(?:hftk|^\.)\[([\w,-]+)\]", word):
            missing = set(extras.split(",")) - set(known)
            assert not missing, f"pyproject.toml has no extra {missing}"


def finish(work: Any) -> None:
    """Do the work as a process of its own would, and end this one."""
    code = 1
    try:
        work()
        code = 0
    except SystemExit as end:
        code = (
            end.code
            if isinstance(end.code, int)
            else 0
            if end.code is None
            else (print(end.code, file=sys.stderr) or 1)
        )
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(Exception):
        sys.stderr.flush()
    os._exit(code)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    streams = array.array("i")
    data, ancillary, _, _ = connection.recvmsg(1 << 20, socket.CMSG_SPACE(3 * streams.itemsize))
    for _, _, payload in ancillary:
        streams.frombytes(payload[: len(payload) - len(payload) % streams.itemsize])
    return json.loads(data), list(streams)


def serve(connection: socket.socket) -> None:
    """One command, in a process of its own."""
    request, streams = receive(connection)
    worker = os.fork()
    if worker == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.path.insert(0, request["folder"])
        program, words = request["program"], request["words"]
        sys.argv = [program, *words]
        checking = "HFTK_DOCS_CHECK" in os.environ
        finish(lambda: check(program, words) if checking else PROGRAMS[program](words))
    for stream in streams:
        os.close(stream)
    status = os.waitpid(worker, 0)[1]
    connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def prepare(hub: Path) -> None:
    """Make the models of the Hub, and one run, which shows what else is imported on the way."""
    from small_hub import make_files, make_models

    make_models(hub)
    home = hub.parent / "first_run"
    make_files(home, hub)
    os.chdir(home)
    before = set(sys.modules)
    words = (
        "--data.path reviews.csv --data.columns.label stars --model.name google-bert/bert-base-uncased"
        " --model.adapter.method lora"
    )
    run_recipe("recipes/bert_classification.py", [*words.split(), "--output", "out"])
    (home / "modules.json").write_text(json.dumps(sorted(set(sys.modules) - before)))


def warm_up(names: list[str]) -> None:
    for name in names:
        with contextlib.suppress(Exception):  # optional packages, and modules that were made and not imported
            import_module(name)


def main(address: str, hub: Path) -> None:
    warm_up(list(WARM))
    maker = os.fork()  # this process computes nothing, so that a fork of it is as good as new
    if maker == 0:
        os.dup2(2, 1)
        finish(lambda: prepare(hub))
    assert os.waitpid(maker, 0)[1] == 0
    warm_up(json.loads((hub.parent / "first_run/modules.json").read_text()))
    from hftk.reports import render_html
    from hftk.reports.record import load_record

    render_html(load_record(hub.parent / "first_run/out"))  # the templates are compiled once
    gc.collect()
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    listener.settimeout(2)
    parent = os.getppid()
    print("ready", flush=True)
    while os.getppid() == parent:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        connection.settimeout(None)
        while True:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(-1, os.WNOHANG)[0]:
                    continue
            break
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            serve(connection)
            os._exit(0)
        connection.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
