import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import hftk
from hftk import launch
from hftk.config import InputError
from hftk.launch import exits, launcher, signals

ROOT = Path(hftk.__file__).parents[1]
TOY = Path(__file__).with_name("toy_recipe.py")
RECIPES = ROOT / "recipes" / "accelerate"
posix = pytest.mark.skipif(os.name == "nt", reason="signals between processes")


def environment(**variables):
    dropped = (*launcher.RANK, *launcher.WORLD_SIZE, *launcher.LOCAL_RANK)
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    # With the CPU asked for, a single process needs no torch to know that nothing is amiss.
    return {**kept, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", **variables}


def start(act, folder, *flags, command=(sys.executable,), **variables):
    return subprocess.Popen(
        [*command, str(TOY), "--model.name", act, *flags],
        cwd=folder,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def status(folder):
    return json.loads((folder / "out" / "status.json").read_text())


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def waiting(folder):
    return lambda: (folder / "out" / "predictions.jsonl").exists()


# --- exit codes and status.json


@pytest.mark.parametrize(
    ("act", "code", "state", "message"),
    [
        ("succeed", 0, "done", ""),
        ("wrong_input", 2, "wrong input", "--data.path: expected a file, found none\n    name one\nand this"),
        ("leave_early", 1, "failed", "SystemExit: enough"),
    ],
)
def test_exit_code_and_status_say_how_the_run_ended(tmp_path, act, code, state, message):
    returned, out, err = finish(start(act, tmp_path))
    told = status(tmp_path)
    assert (returned, told["exit_code"], told["state"], told["message"]) == (code, code, state, message)
    assert set(told) == {"state", "exit_code", "message", "pid", "started", "updated", "processes", "command"}
    assert told["processes"] == 1 and "--model.name " + act in told["command"]
    assert out.endswith("all settings: out/config.yaml\n")
    assert not (tmp_path / "out" / "run.lock").exists()
    assert ("Traceback" in err) == (state == "failed")


def test_a_failure_has_a_traceback_a_plain_line_and_no_token(tmp_path):
    code, _, err = finish(start("fail", tmp_path))
    told = status(tmp_path)
    assert (code, told["state"]) == (1, "failed")
    assert told["message"].startswith("ValueError: boom with ") and "hf_abcdef" not in told["message"]
    assert "Traceback" in err
    assert (
        err.splitlines()[-1].startswith("hftk: failed: ValueError: boom")
        and "hf_abcdef" not in err.splitlines()[-1]
    )


def test_every_wrong_flag_is_told_at_once_and_nothing_is_written(tmp_path):
    code, out, err = finish(start("succeed", tmp_path, "--train.epochs", "many", "--train.nonsense", "1"))
    assert code == 2
    assert "2 problems" in err and "train.epochs" in err and "train.nonsense" in err
    assert "Traceback" not in err and out == ""
    assert list(tmp_path.iterdir()) == []


def test_wrong_input_leaves_the_status_of_an_earlier_run_alone(tmp_path):
    finish(start("succeed", tmp_path))
    before = (tmp_path / "out" / "status.json").read_bytes()
    code, _, err = finish(start("succeed", tmp_path))
    assert code == 2 and "--resume auto" in err and "--overwrite" in err
    assert (tmp_path / "out" / "status.json").read_bytes() == before


def test_help_is_quick_and_without_torch(tmp_path):
    code = (
        "import runpy, sys; sys.argv = [{!r}, '--help']\ntry: runpy.run_path(sys.argv[0],"
        " run_name='__main__')\n"
    )
    code += "finally: print('torch' in sys.modules, 'accelerate' in sys.modules)"
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code.format(str(TOY))],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - started
    assert done.returncode == 0 and "A toy recipe" in done.stdout
    assert done.stdout.splitlines()[-1] == "False False"
    assert seconds < 1.5 or os.getloadavg()[0] > 1.5, f"{seconds:.2f} s"
    assert list(tmp_path.iterdir()) == []


def test_help_is_printed_by_the_main_process_alone(monkeypatch, capsys):
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as caught:
            launch.run(print, hftk.config.RunConfig(), ["--help"])
        assert caught.value.code == 0
        assert ("--output" in capsys.readouterr().out) == (rank == "0")


# --- signals


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_with_code_3(tmp_path, number):
    process = start("wait", tmp_path)
    wait_until(waiting(tmp_path))
    assert status(tmp_path)["state"] == "running" and (tmp_path / "out" / "run.lock").exists()
    process.send_signal(number)
    code, _, err = finish(process)
    told = status(tmp_path)
    assert (code, told["exit_code"], told["state"]) == (3, 3, "stopped")
    assert (
        signal.Signals(number).name in told["message"] and "--resume auto" in err and "Traceback" not in err
    )
    assert not (tmp_path / "out" / "run.lock").exists()


@posix
def test_inside_graceful_a_signal_lets_the_loop_save_first(tmp_path):
    process = start("train", tmp_path)
    wait_until(waiting(tmp_path))
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # the launcher and the kernel may both say it
    code, _, err = finish(process)
    assert code == 3 and status(tmp_path)["state"] == "stopped", err
    assert (tmp_path / "out" / "model.safetensors").read_text() == "saved"


@posix
def test_a_second_ctrl_c_ends_at_once_but_an_echo_of_the_first_does_not(tmp_path):
    process = start("ignore", tmp_path)
    wait_until(waiting(tmp_path))
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    time.sleep(signals.SAME_REQUEST_SECONDS + 0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130


def test_graceful_alone_installs_and_removes_its_handlers():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(signals.StopRequested), signals.graceful():
        assert signal.getsignal(signal.SIGTERM) is not before
        signal.raise_signal(signal.SIGTERM)
        assert signals.stop_requested()
    assert signal.getsignal(signal.SIGTERM) is before
    assert not signals.stop_requested()


def test_no_signal_interrupts_the_last_words_of_a_run():
    with signals.handled():
        signals.ignore_requests()
        signal.raise_signal(signal.SIGTERM)


@posix
def test_a_forked_worker_neither_answers_ctrl_c_nor_survives_sigterm():
    with signals.handled():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        _, ended = os.waitpid(child, 0)
    assert os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGTERM


@posix
@pytest.mark.parametrize("kernel", [True, False])
def test_no_process_outlives_its_launcher(tmp_path, kernel):
    if kernel and not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells a process of its parent's death")
    child = tmp_path / "child.py"
    child.write_text(
        "import os, sys, time\nfrom pathlib import Path\nfrom hftk.launch import signals\n"
        f"signals.WATCH_SECONDS = 0.1\nif not {kernel}: signals._ask_kernel = lambda: False\n"
        "with signals.handled():\n    try:\n        signals.die_with(os.getppid())\n"
        "        Path('ready').touch()\n        time.sleep(20)\n"
        "    except signals.StopRequested:\n        Path('stopped').touch()\n"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, {str(child)!r}])"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment())
    wait_until((tmp_path / "ready").exists)
    parent.kill()
    parent.wait()
    wait_until((tmp_path / "stopped").exists, seconds=5)


# --- what was asked for


class FakeParent:
    def __init__(self, command, folder):
        self.command, self.folder, self.pid = command, folder, 4711

    def parents(self):
        return [
            FakeParent(["bash", "-c", "accelerate launch --num_processes 9 toy_recipe.py"], self.folder),
            self,
        ]

    def cmdline(self):
        return self.command

    def cwd(self):
        return str(self.folder)


def found(monkeypatch, folder, command, home=None):
    monkeypatch.setattr(psutil, "Process", lambda: FakeParent(command, folder))
    monkeypatch.setattr(sys, "argv", [str(TOY), "--model.name", "x"])
    monkeypatch.setenv("HF_HOME", str(home or folder / "nowhere"))
    return launcher.find_launcher()


@pytest.mark.parametrize(
    ("command", "processes", "cpu", "strategy"),
    [
        (
            "python /bin/accelerate launch --cpu --num_processes 2 toy_recipe.py --num_processes 7",
            2,
            True,
            "",
        ),
        (
            "python3.11 -u -X dev -m accelerate.commands.launch --num-processes=3 sub/toy_recipe.py",
            3,
            False,
            "",
        ),
        (
            "/bin/accelerate-launch --main_process_port 29501 --multi_gpu --num_processes 4 toy_recipe.py",
            4,
            False,
            "",
        ),
        ("python accelerate launch toy_recipe.py --num_processes 7", None, False, ""),
        ("accelerate.exe launch --use_fsdp --num_processes 2 toy_recipe.py", 2, False, "fsdp"),
        ("accelerate launch --config_file multi_cpu.yaml toy_recipe.py", 5, True, ""),
        ("accelerate launch --config_file multi_cpu.yaml --num_processes 6 toy_recipe.py", 6, True, ""),
        ("accelerate launch --config_file zero.json toy_recipe.py", 8, False, "deepspeed"),
        ("accelerate launch --config_file zero.json --multi_gpu toy_recipe.py", 8, False, ""),
    ],
)
def test_what_accelerate_was_asked_for_is_read_off_its_command_line(
    tmp_path, monkeypatch, command, processes, cpu, strategy
):
    (tmp_path / "multi_cpu.yaml").write_text("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 5\n")
    (tmp_path / "zero.json").write_text('{"distributed_type": "DEEPSPEED", "num_processes": 8}')
    asked = found(monkeypatch, tmp_path, command.split())
    assert (asked.name, asked.pid) == ("accelerate", 4711)
    assert (asked.processes, asked.cpu, asked.strategy) == (processes, cpu, strategy)


def test_the_default_config_file_counts_unless_the_cpu_is_asked_for_by_flag(tmp_path, monkeypatch):
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text(
        "distributed_type: MULTI_GPU\nnum_processes: 8\n"
    )
    command = ["accelerate", "launch", "toy_recipe.py"]
    assert found(monkeypatch, tmp_path, command, home=tmp_path).processes == 8
    assert (
        found(monkeypatch, tmp_path, [*command[:2], "--cpu", *command[2:]], home=tmp_path).processes is None
    )


@pytest.mark.parametrize(
    "command", ["torchrun --nproc_per_node 2 toy_recipe.py", "python -m torch.distributed.run x.py"]
)
def test_torchrun_is_recognized_and_taken_at_its_word(tmp_path, monkeypatch, command):
    asked = found(monkeypatch, tmp_path, command.split())
    assert (asked.name, asked.processes) == ("torchrun", None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launcher.contradictions(asked) == []


@pytest.mark.parametrize(
    "command", ["bash -c true", "pytest -k accelerate launch", "python train.py accelerate launch"]
)
def test_other_programs_are_no_launchers(tmp_path, monkeypatch, command):
    assert found(monkeypatch, tmp_path, command.split()) is None


def test_the_own_reading_agrees_with_the_parser_of_accelerate(monkeypatch):
    from accelerate.commands.launch import launch_command_parser

    monkeypatch.setattr(sys, "argv", ["toy_recipe.py"])
    for line in (
        "--num_processes 2 --cpu",
        "--num-processes 3 --mixed_precision bf16",
        "--multi-gpu --num_processes=4",
        "--use-deepspeed --num_machines 2 --num_processes 16 --main_process_ip 10.0.0.1",
        "--use_fsdp -q",
        "--debug --cpu",
    ):
        words = [*line.split(), "toy_recipe.py", "--num_processes", "99"]
        theirs = launch_command_parser().parse_args(words)
        ours = launcher._asked_of_accelerate(launcher._before_script(words), Path("/nowhere"))
        strategy = "fsdp" if theirs.use_fsdp else "deepspeed" if theirs.use_deepspeed else ""
        gpus = theirs.multi_gpu or bool(strategy)
        assert ours == {
            "processes": theirs.num_processes,
            "cpu": theirs.cpu,
            "strategy": strategy,
            "gpus": gpus,
        }, line


def asked(processes=None, strategy=""):
    return launcher.Launcher(name="accelerate", pid=1, processes=processes, strategy=strategy)


def test_fewer_or_more_processes_than_asked_for_stop_the_run(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipes/gpt2_clm.py", "--train.max_steps", "5"])
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (fewer,) = launcher.contradictions(asked(3))
    assert "expected 3 processes" in fewer.message and "found 1" in fewer.message
    again = (
        "accelerate launch --config_file recipes/accelerate/two_processes.yaml --num_processes 3"
        " recipes/gpt2_clm.py"
    )
    assert f"{again} --train.max_steps 5" in fewer.fix and "--multi_gpu" in fewer.fix
    monkeypatch.setenv("WORLD_SIZE", "4")
    (more,) = launcher.contradictions(asked(3))
    assert "that 4 run" in more.message and "unset WORLD_SIZE" in more.fix
    assert (
        launcher.contradictions(asked(4))
        == launcher.contradictions(asked(None))
        == launcher.contradictions(None)
        == []
    )


def test_a_strategy_that_was_dropped_stops_the_run(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)
    (problem,) = launcher.contradictions(asked(strategy="deepspeed"))
    assert "expected deepspeed" in problem.message
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert launcher.contradictions(asked(strategy="deepspeed")) == []


def test_fsdp_on_a_cpu_and_lost_peers_are_told():
    nothing = launcher.downgrades(asked=2, found=2, strategy="fsdp", device="cuda", gpus_of_one_process=1)
    two = launcher.downgrades(asked=2, found=1, strategy="fsdp", device="cpu", gpus_of_one_process=1)
    assert nothing == [] and len(two) == 2
    assert "each would train alone" in two[0].message and "plain DDP" in two[1].message


def test_several_gpus_in_one_process_never_become_data_parallel(alone, monkeypatch):
    import torch

    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="each of the 2 visible GPUs") as caught:
        launch.launched()
    assert "accelerate launch --multi_gpu --num_processes 2" in str(caught.value)
    assert "CUDA_VISIBLE_DEVICES=0 python" in str(caught.value)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert launch.launched().device == "cpu"


def test_a_wrong_launch_is_found_before_overwrite_removes_anything(alone, monkeypatch, tmp_path):
    import torch

    (tmp_path / "record.json").write_text('{"hftk": "0"}')
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SystemExit) as caught:
        launch.run(print, hftk.config.RunConfig(output=str(tmp_path)), ["--overwrite"])
    assert caught.value.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_one_plain_process_is_what_it_is(alone, monkeypatch):
    import torch

    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    single = launch.Launch(
        processes=1, rank=0, local_rank=0, device="cpu", backend=None, strategy="none", asked_processes=None
    )
    assert launch.launched() == single and single.is_main
    assert "ACCELERATE_USE_CPU" not in os.environ


# --- several processes


def test_on_main_in_a_single_process_is_a_plain_call(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launch.on_main(lambda a, b: a + b, 1, b=2) == 3
    with pytest.raises(ZeroDivisionError):
        launch.on_main(lambda: 1 / 0)


def peer_ends(folder, error, monkeypatch, main_says=None):
    """What process 1 does with ``error``, and the status afterwards."""
    from hftk.launch.output_folder import write_status

    beginning = {"state": "running", "exit_code": None, "pid": 1, "started": "now", "message": ""}
    write_status(folder, {**beginning, **(main_says or {})})
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(exits, "PEER_SECONDS", 0.1)
    code = exits.end(error, exits.Run(folder=folder, status=beginning))
    return code, json.loads((folder / "status.json").read_text())


def test_a_peer_that_fails_alone_says_so_in_the_status_and_the_main_process_keeps_it(
    tmp_path, monkeypatch, capsys
):
    code, told = peer_ends(tmp_path, ValueError("only here"), monkeypatch)
    assert (code, told["state"], told["exit_code"]) == (1, "failed", 1)
    assert told["message"] == "process 1: ValueError: only here"
    assert "ValueError: only here" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")  # which then meets a closed connection, or is stopped by the launcher
    for consequence in (signals.StopRequested("SIGTERM"), RuntimeError("Connection closed by peer")):
        assert exits.end(consequence, exits.Run(folder=tmp_path, status=told)) == 1
        assert json.loads((tmp_path / "status.json").read_text()) == told
        assert "process 1: ValueError: only here" in capsys.readouterr().err


def test_a_peer_that_was_killed_is_named_as_the_cause(monkeypatch):
    lost = RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:40854")
    assert "another process" not in exits.meaning(lost)[2]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (
        exits.meaning(lost)[:2] == ("failed", 1)
        and "another process of this run ended" in exits.meaning(lost)[2]
    )


def test_a_peer_with_the_same_wrong_input_as_the_main_process_is_silent(tmp_path, monkeypatch, capsys):
    said = {"state": "wrong input", "exit_code": 2, "message": "the same"}
    code, told = peer_ends(tmp_path, InputError("the same"), monkeypatch, main_says=said)
    assert (code, told["message"]) == (2, "the same")
    assert capsys.readouterr().err == ""


@pytest.mark.launch
def test_two_processes_share_results_and_errors_and_one_of_them_speaks(tmp_path):
    command = (
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(RECIPES / "two_processes.yaml"),
    )
    code, out, err = finish(start("work_together", tmp_path, command=command, ACCELERATE_USE_CPU=""))
    first, second = (json.loads((tmp_path / "out" / f"rank{rank}.json").read_text()) for rank in (0, 1))
    facts = {"processes": 2, "device": "cpu", "backend": "gloo", "asked": 2, "strategy": "ddp", "cpu": "true"}
    assert facts.items() <= first.items() and facts.items() <= second.items()
    told = status(tmp_path)
    assert first["result"] == second["result"] == f"made by {told['pid']}"
    assert first["nested"] == second["nested"] == 7
    assert "cannot hand a function" in first["unpicklable result"]
    assert first["unpicklable result"] == second["unpicklable result"]
    assert first["unpicklable error"] == "Unpicklable: 1 2"
    assert second["unpicklable error"] == "RuntimeError: Unpicklable: 1 2"
    assert code == 1  # accelerate's, whatever the children return
    assert (told["state"], told["exit_code"], told["processes"]) == ("wrong input", 2, 2)
    assert err.count("expected a file, found none") == 1 and out.count("all settings: out") == 1


@pytest.mark.launch
def test_two_processes_asked_for_and_one_given_stops_before_anything_is_written(tmp_path):
    command = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    code, _, err = finish(start("succeed", tmp_path, command=command))
    assert code != 0 and "expected 2 processes" in err and "two_processes.yaml" in err
    assert not (tmp_path / "out").exists()


def test_the_launch_configs_say_what_their_names_say():
    import yaml

    read = {path.stem: yaml.safe_load(path.read_text()) for path in RECIPES.glob("*.yaml")}
    assert (read["two_processes"]["num_processes"], read["two_processes"]["use_cpu"]) == (2, True)
    assert (read["one_process_cpu"]["num_processes"], read["one_process_cpu"]["use_cpu"]) == (1, True)
    assert read["ddp"]["distributed_type"] == "MULTI_GPU" and "num_processes" not in read["ddp"]


# --- threads


@pytest.mark.parametrize(("set_by_user", "threads"), [({}, "3"), ({"OMP_NUM_THREADS": "1"}, "1")])
def test_a_process_gets_its_share_of_the_cores_unless_the_user_chose(set_by_user, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(psutil.Process, "environ", lambda self: set_by_user)
    monkeypatch.setattr(psutil.Process, "cmdline", lambda self: ["accelerate", "launch"])
    launcher.use_all_cores(launcher.Launcher(name="accelerate", pid=os.getpid()))
    assert os.environ["OMP_NUM_THREADS"] == threads


def test_a_run_without_a_launcher_keeps_its_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launcher.use_all_cores(None)
    assert os.environ["OMP_NUM_THREADS"] == "1"
