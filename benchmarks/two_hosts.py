"""Two hosts on this machine: a recipe on both, and how soon one notices that the other is gone.

    sudo python benchmarks/two_hosts.py            # writes results/two_hosts.json

Each host is a network namespace of Linux with a host name and an address of its own, and a third one is the
switch between them. Faults: the processes of one host are killed; the switch drops everything that one host
sends or gets. Linux, and root or another user who may make namespaces.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hftk.launch.environment import environment

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("a", "b")
PORT = 29500
GPT2 = (
    str(ROOT / "recipes" / "gpt2_clm.py"),
    "--data.sample",
    "python_docs",
    "--data.max_rows",
    "400",
    "--model.size",
    "tiny",
    "--model.vocab_size",
    "500",
    "--eval.max_rows",
    "20",
    "--eval.resamples",
    "0",
    "--train.max_length",
    "64",
    "--train.save_steps",
    "20",
    "--train.eval_steps",
    "1000",
    "--train.max_steps",
    "60",
)
"""The recipe with settings that make it short."""


class Hosts:
    """Two namespaces that see each other through a switch; to be used in a ``with`` block."""

    def __init__(self) -> None:
        self.prefix = f"hftk{os.getpid()}"
        self.addresses = {name: f"10.213.0.{number}" for number, name in enumerate(NAMES, 1)}

    def __enter__(self) -> Hosts:
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self) -> None:
        switch = self.prefix
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "link", "set", "switch", "up")
        for name in NAMES:
            host = self.space(name)
            _ip("netns", "add", host)
            _ip(
                "-n",
                switch,
                "link",
                "add",
                f"port-{name}",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                host,
            )
            _ip("-n", switch, "link", "set", f"port-{name}", "master", "switch", "up")
            _ip("-n", host, "address", "add", f"{self.addresses[name]}/24", "dev", "eth0")
            _ip("-n", host, "link", "set", "eth0", "up")
            _ip("-n", host, "link", "set", "lo", "up")

    def __exit__(self, *_: Any) -> None:
        for space in (*(self.space(name) for name in NAMES), self.prefix):
            self.kill(space)
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)

    def space(self, name: str) -> str:
        """Namespace of host a or b."""
        return f"{self.prefix}{name}"

    def start(self, name: str, words: Sequence[str], said: Path, **settings: Any) -> subprocess.Popen[bytes]:
        """A program on a host, whose name it sees as ``node-a`` or ``node-b``; what it says goes to the file
        ``said``."""
        named = ["unshare", "--uts", "sh", "-c", f'hostname node-{name}; exec "$@"', "sh"]
        with said.open("wb") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.space(name), *named, *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                **settings,
            )

    def kill(self, space: str) -> None:
        """SIGKILL to all processes of a namespace."""
        found = subprocess.run(
            ["ip", "netns", "pids", space], capture_output=True, text=True, check=False
        ).stdout
        for pid in found.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def cut(self, name: str) -> None:
        """The switch no longer passes on what this host sends or gets; the host's own link stays up, as
        behind a real switch."""
        _ip("-n", self.prefix, "link", "set", f"port-{name}", "nomaster")


def missing() -> str:
    """Why this machine cannot play two hosts; "" where it can."""
    if not sys.platform.startswith("linux") or not shutil.which("ip") or not shutil.which("unshare"):
        return "network namespaces need Linux with ip (iproute2) and unshare (util-linux)"
    try:
        with Hosts() as hosts, scratch() as folder:
            code = hosts.start("a", ["true"], folder / "said").wait(20)
            return "" if code == 0 else (folder / "said").read_text().strip()
    except (subprocess.SubprocessError, OSError) as error:
        return f"network namespaces are not permitted here ({error})"


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def launch(
    hosts: Hosts,
    folder: Path,
    command: Sequence[str],
    *,
    per_host: int = 1,
    outputs: Mapping[str, str] | None = None,
) -> dict[str, subprocess.Popen[bytes]]:
    """``accelerate launch`` of a recipe with its flags on both hosts; ``outputs``: a folder for each, where
    they share none."""
    variables = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "eth0",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "TOKENIZERS_PARALLELISM": "false",
    }
    started = {}
    for rank, name in enumerate(NAMES):
        output = (outputs or {}).get(name, str(folder / "out"))
        words = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_machines",
            "2",
            "--machine_rank",
            str(rank),
            "--num_processes",
            str(2 * per_host),
            "--main_process_ip",
            hosts.addresses["a"],
            "--main_process_port",
            str(PORT),
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            *command,
            "--output",
            output,
        ]
        started[name] = hosts.start(name, words, said_by(folder, name), env=variables, cwd=folder)
    return started


def said_by(folder: Path, name: str) -> Path:
    """The file with what a host says."""
    return folder / f"said-{name}.txt"


def wait_for(
    condition: Callable[[], bool],
    folder: Path,
    started: Mapping[str, subprocess.Popen[bytes]],
    seconds: float = 300.0,
) -> None:
    """Returns once ``condition`` holds; RuntimeError with what was said where the run ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline or any(p.poll() is not None for p in started.values()):
            raise RuntimeError("\n".join(said_by(folder, name).read_text() for name in started))
        time.sleep(0.05)


def has_checkpoint(folder: Path, step: int = 20) -> bool:
    """Whether the run has a whole checkpoint of this step or a later one."""
    found = folder.glob("out*/checkpoints/checkpoint-*/manifest.json")
    return any(int(path.parent.name.rpartition("-")[2]) >= step for path in found)


def fail(
    fault: str,
    host: str,
    folder: Path,
    command: Sequence[str] = GPT2,
    *,
    per_host: int = 1,
    ready: Callable[[Path], bool] = has_checkpoint,
    outputs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A run on both hosts, to which ``fault`` happens on ``host`` as soon as ``ready(folder)``.

    Returns ``seconds`` from the fault to the end of the launcher on the other host (with a cut, on each),
    what each host ``said``, and the ``status`` that is left.
    """
    with Hosts() as hosts:
        started = launch(hosts, folder, command, per_host=per_host, outputs=outputs)
        wait_for(lambda: ready(folder), folder, started)
        begun = time.monotonic()
        if fault == "killed":
            hosts.kill(hosts.space(host))
        else:
            hosts.cut(host)
        seconds: dict[str, float] = {}
        while len(seconds) < len(started) and time.monotonic() < begun + 180:
            ended = [
                name
                for name, process in started.items()
                if name not in seconds and process.poll() is not None
            ]
            seconds |= {name: round(time.monotonic() - begun, 2) for name in ended}
            time.sleep(0.02)
        if fault == "killed":
            del seconds[host]
        said = {name: said_by(folder, name).read_text() for name in started}
    output = Path((outputs or {}).get("a", folder / "out"))
    return {"seconds": seconds, "said": said, "status": json.loads((output / "status.json").read_text())}


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def resume(folder: Path, *, per_host: int = 1, outputs: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The same command again with ``--resume auto``, to its end: what was ``said``, and the ``record`` of the
    whole run."""
    with Hosts() as hosts:
        started = launch(hosts, folder, [*GPT2, "--resume", "auto"], per_host=per_host, outputs=outputs)
        codes = [process.wait(600) for process in started.values()]
        said = {name: said_by(folder, name).read_text() for name in started}
        if any(codes):
            raise RuntimeError("\n".join(said.values()))
    output = Path((outputs or {}).get("a", folder / "out"))
    return {"said": said, "record": json.loads((output / "record.json").read_text())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", default=str(ROOT / "results" / "two_hosts.json"), help="file for the figures"
    )
    output = parser.parse_args().output
    reason = missing()
    if reason:
        sys.exit(reason)
    runs: list[dict[str, Any]] = []
    for per_host, host, fault in (
        (1, "b", "cut"),
        (1, "a", "killed"),
        (1, "b", "killed"),
        (1, "a", "cut"),
        (2, "b", "cut"),
        (2, "b", "killed"),
    ):
        runs.append(measure(fault, host, per_host))
        print(json.dumps(runs[-1]), flush=True)
        facts = {
            "command": "python benchmarks/two_hosts.py",
            "peer_timeout": 30,
            "runs": runs,
            **environment(),
        }
        Path(output).write_text(json.dumps(facts, indent=1) + "\n")


def measure(fault: str, host: str, per_host: int) -> dict[str, Any]:
    """One fault and what came after it, for the table."""
    with scratch() as folder:
        seen = fail(fault, host, folder, per_host=per_host)
        again = resume(folder, per_host=per_host)
    message, _, rest = seen["status"]["message"].partition("; ")
    return {
        "fault": fault,
        "host": host,
        "processes_per_host": per_host,
        "seconds_to_the_end": seen["seconds"],
        "message": message,
        "last_checkpoint": rest.partition(";")[0],
        "steps_after_resuming": again["record"]["history"][-1]["step"],
    }


if __name__ == "__main__":
    main()
