"""Two processes in folders of their own, as on two machines that share no disk; each leaves what it has found."""

import json
import os
import sys
from pathlib import Path

from hftk import console
from hftk.config import InputError
from hftk.launch import launched, leave_group, machines, on_main
from hftk.launch.output_folder import write_status

FILES = {"manifest.json": b"{}", "model.safetensors": os.urandom(2500), "empty": b"", "parts/one": b"1" * 1000}


def make(folder):
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return write_status(
        Path("out"), {"state": "running", "exit_code": None, "pid": 7, "started": "now", "processes": 2}
    )


def problem(strategy, status):
    try:
        machines.check_output_is_seen(Path("out"), status, strategy)
    except InputError as error:
        return str(error)
    return ""


def main(folder, shared):
    rank = os.environ["RANK"]
    home = folder / ("machine0" if shared else f"machine{rank}")
    home.mkdir(exist_ok=True)
    os.chdir(home)
    machines.SEE_SECONDS, machines.PIECE = 0.3, 1000
    launched()
    checkpoint = Path("out/checkpoints/checkpoint-4")
    status = on_main(make, checkpoint)
    problems = {strategy: problem(strategy, status) for strategy in ("ddp", "fsdp", "deepspeed")}
    found = machines.bring(checkpoint)
    files = {p.relative_to(found).as_posix(): p.read_bytes().hex() for p in found.rglob("*") if p.is_file()}
    assert machines.bring(None) is None
    result = {
        "same": found == checkpoint,
        "name": found.name,
        "files": files,
        "problems": problems,
        "noted": console.noted(),
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(result))
    on_main(int)
    leave_group()  # as hftk.run does: gloo may abort a process whose peer ends first


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "shared")
