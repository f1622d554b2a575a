"""The scripts in docs/cluster do what they say: run as they are, on CPUs, with a srun that plays the
nodes."""

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "docs" / "cluster"
TOY = ROOT / "tests" / "launch" / "toy_recipe.py"
pytestmark = pytest.mark.skipif(os.name == "nt", reason="bash")
SRUN = """#!/bin/bash
# One process for each node; the exit code is the largest of theirs, as of the real one.
while [[ $1 == -* ]]; do shift; done
for node in $(seq 0 $((SLURM_NNODES - 1))); do SLURM_NODEID=$node SLURM_PROCID=$node "$@" & jobs+=($!); done
code=0; for job in "${jobs[@]}"; do wait "$job"; found=$?; [ $found -gt $code ] && code=$found; done; exit $code
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then for node in $(seq "$SLURM_NNODES"); do echo 127.0.0.1; done; else echo "$@" >> scontrol.log; fi
"""
ACCELERATE = '#!/bin/bash\nprintf "%s\\n" "$@" > arguments.txt\n'


def environment(folder, **variables):
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "RECIPE": str(TOY),
        "OUTPUT": "out",
        **variables,
    }


def submit(folder, act, *, nodes=1, starts=0):
    slurm = {
        "SLURM_NNODES": nodes,
        "SLURM_JOB_ID": os.getpid(),
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_RESTART_COUNT": starts,
    }
    with (folder / "said.txt").open("wb") as said:
        return subprocess.Popen(
            ["bash", str(CLUSTER / "slurm.sbatch"), "--model.name", act],
            cwd=folder,
            stdout=said,
            stderr=said,
            env=environment(folder, **{name: str(value) for name, value in slurm.items()}),
        )


def said(folder):
    return (folder / "said.txt").read_text()


def requeued(folder):
    return (folder / "scontrol.log").exists()


def stop(folder, process):
    """What SLURM does before the time limit, once the run is under way."""
    deadline = time.monotonic() + 300
    while not (folder / "out" / "predictions.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline, said(folder)
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    return process.wait(300)


@pytest.mark.launch
def test_a_job_that_is_asked_to_stop_saves_and_goes_back_to_the_queue(tmp_path):
    assert stop(tmp_path, submit(tmp_path, "train")) == 0, said(tmp_path)
    assert (tmp_path / "out" / "model.safetensors").read_text() == "saved"
    assert "the run is stopped (start 1)" in said(tmp_path)
    assert (tmp_path / "scontrol.log").read_text() == f"requeue {os.getpid()}\n"


@pytest.mark.slow
def test_a_job_on_two_nodes_is_stopped_by_its_main_process_alone(tmp_path):
    assert stop(tmp_path, submit(tmp_path, "train", nodes=2)) == 0, said(tmp_path)
    assert (tmp_path / "out" / "model.safetensors").read_text() == "saved" and requeued(tmp_path)


@pytest.mark.launch
@pytest.mark.parametrize(("act", "code"), [("wrong_input", 2), ("fail", 1), ("succeed", 0)])
def test_a_job_that_is_done_or_needs_a_person_does_not_go_back(tmp_path, act, code):
    assert submit(tmp_path, act).wait(300) == code, said(tmp_path)
    assert not requeued(tmp_path)


@pytest.mark.launch
def test_a_job_that_was_started_too_often_does_not_go_back(tmp_path):
    assert stop(tmp_path, submit(tmp_path, "train", starts=50)) == 1, said(tmp_path)
    assert "(start 51)" in said(tmp_path) and not requeued(tmp_path)


@pytest.mark.launch
def test_torchrun_alone_starts_a_recipe(tmp_path):
    command = ["bash", str(CLUSTER / "torchrun.sh"), "--model.name", "succeed"]
    variables = environment(tmp_path, PROCESSES="1", PORT=str(20000 + os.getpid() % 20000))
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_the_command_for_skypilot_is_one_that_accelerate_and_the_recipe_read(tmp_path):
    from accelerate.commands.launch import launch_command_parser

    from hftk.config.parse import parse

    task = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())
    assert task["num_nodes"] == 2 and task["file_mounts"]["/runs"]["mode"] == "MOUNT_CACHED"
    variables = environment(
        tmp_path,
        SKYPILOT_NODE_IPS="10.0.0.7\n10.0.0.8",
        SKYPILOT_NODE_RANK="1",
        SKYPILOT_NUM_NODES="2",
        SKYPILOT_NUM_GPUS_PER_NODE="8",
    )
    (tmp_path / "bin" / "accelerate").write_text(ACCELERATE)
    (tmp_path / "bin" / "accelerate").chmod(0o755)
    subprocess.run(["bash", "-eu", "-c", task["run"]], cwd=tmp_path, env=variables, check=True)
    launch, *words = (tmp_path / "arguments.txt").read_text().splitlines()
    found = launch_command_parser().parse_args(words)
    assert launch == "launch" and (found.num_processes, found.num_machines, found.machine_rank) == (16, 2, 1)
    assert found.main_process_ip == "10.0.0.7" and (ROOT / found.training_script).exists()
    config = parse(
        runpy.run_path(str(ROOT / found.training_script), run_name="recipe")["CONFIG"],
        found.training_script_args,
    )
    assert (config.output, config.resume) == ("/runs/gpt2_clm", "auto")


@pytest.mark.parametrize("path", sorted(CLUSTER.glob("*.s*")), ids=lambda path: path.name)
def test_scripts_are_bash_and_say_how_they_are_started(path):
    if path.suffix in (".sh", ".sbatch"):
        subprocess.run(["bash", "-n", str(path)], check=True)
        text = path.read_text()
        assert path.name in re.findall(r"^# +.*docs/cluster/(\S+)", text, re.MULTILINE)
