"""A process that talks to the Hub on loopback: ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` are read when
huggingface_hub is imported.

Reads one JSON object a line from standard input, ``{"argv": [...], "env": {...}}`` for a command of hftk or
``{"code": "..."}`` for Python, and answers ``{"code", "out", "err", "slept"}``. Nobody waits here: sleeping
is cut short and written down.
"""

import contextlib
import io
import json
import os
import sys
import time
import traceback


def main() -> None:
    answers, really_sleep = os.fdopen(os.dup(1), "w"), time.sleep
    slept = []
    time.sleep = lambda seconds: (slept.append(seconds), really_sleep(min(seconds, 0.01)))
    from hftk.cli import main as hftk

    for line in sys.stdin:
        asked = json.loads(line)
        out, err = io.StringIO(), io.StringIO()
        slept.clear()
        for name, value in asked.get("env", {}).items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = hftk(asked["argv"]) if "argv" in asked else exec(asked["code"], {}) or 0
            except BaseException:
                traceback.print_exc()
                code = 1
        answers.write(
            json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue(), "slept": slept}) + "\n"
        )
        answers.flush()


if __name__ == "__main__":
    main()
