"""Two processes, in folders of their own as on machines that share no disk, or in one; each leaves what it
was told."""

import json
import os
import sys
from pathlib import Path

from hftk.config import InputError
from hftk.launch import launched, leave_group, machines, on_main
from hftk.launch.output_folder import write_status


def make():
    Path("out").mkdir()
    return write_status(
        Path("out"), {"state": "running", "exit_code": None, "pid": 7, "started": "now", "processes": 2}
    )


def main(folder, shared):
    rank = os.environ["RANK"]
    home = folder / ("machine0" if shared else f"machine{rank}")
    home.mkdir(exist_ok=True)
    os.chdir(home)
    machines.SEE_SECONDS = 0.3
    launched()
    problem = ""
    try:
        machines.check_output_is_seen(Path("out"), on_main(make))
    except InputError as error:
        problem = str(error)
    (folder / f"rank{rank}.json").write_text(json.dumps(problem))
    on_main(int)
    leave_group()  # as hftk.run does: gloo may abort a process whose peer ends first


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "shared")
