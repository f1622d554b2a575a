"""Two processes publish together: the first sends, both hear how it ended. Argument: the folder of a finished
run."""

import sys
from pathlib import Path

from hftk import hub
from hftk.config import PublishConfig, RunConfig, ServiceError
from hftk.launch import launched, leave_group
from hftk.reports.record import load_record

hub.PULSE_SECONDS = 0.05
hub.upload.WAITS = ()


def main(folder: str) -> None:
    config = RunConfig(output=folder, publish=PublishConfig(repo="somebody/rivers"))
    try:
        said = hub.publish(load_record(folder), config)
    except ServiceError as error:
        said = f"failed: {error}".splitlines()[0][:40]
    Path(f"said_{launched().rank}.txt").write_text(str(said))
    leave_group()  # as hftk.run does: gloo may abort a process whose peer ends first


if __name__ == "__main__":
    main(sys.argv[1])
