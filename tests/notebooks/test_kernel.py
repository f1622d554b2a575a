"""hftk inside the kernel of a notebook: errors to be read, an interrupt that leaves the kernel alive, bars
where they belong."""

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
ROOT = Path(__file__).parents[2]

CELLS = {
    "wrong input": (
        """
from hftk.config import InputError, Problem
raise InputError(Problem(setting="train.epochs", message="expected more than 0, found -1", fix="use 3"), "another")
"""
    ),
    "interrupted twice": (
        """
import os, signal, time
from hftk.launch.signals import graceful
precious = 42
with graceful():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1.2)  # longer than an echo of the first
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
    print("not reached")
"""
    ),
    "afterwards": (
        """
print(precious, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
    ),
    "a bar": (
        """
from hftk.console import in_notebook, progress_bar, write_beside
bar = progress_bar(total=3)
write_beside(bar, "step 1: loss 2.0")
bar.close()
print(in_notebook())
"""
    ),
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Name of a cell to its outputs, all run by one kernel."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in CELLS.values()]
    )
    folder = tmp_path_factory.mktemp("kernel")
    client = nbclient.NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        allow_errors=True,
        resources={"metadata": {"path": str(folder)}},
    )
    settings = {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / ".ipython")}
    asyncio.run(client.async_execute(env={**os.environ, **settings}))
    return dict(zip(CELLS, [cell.outputs for cell in notebook.cells], strict=True))


def said(outputs, stream="stdout"):
    return "".join(
        output.text for output in outputs if output.output_type == "stream" and output.name == stream
    )


@pytest.mark.launch
def test_wrong_input_is_told_without_a_traceback(outputs):
    (error,) = outputs["wrong input"]
    expected = "InputError: --train.epochs: expected more than 0, found -1\n    use 3\nanother"
    assert error.output_type == "error" and "\n".join(error.traceback) == expected


@pytest.mark.launch
@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to a process of its own")
def test_a_second_interrupt_ends_the_cell_and_not_the_kernel(outputs):
    assert [o.ename for o in outputs["interrupted twice"] if o.output_type == "error"] == [
        "KeyboardInterrupt"
    ]
    assert "not reached" not in said(outputs["interrupted twice"])
    assert said(outputs["afterwards"]) == "42 True\n"


@pytest.mark.launch
def test_lines_beside_a_bar_do_not_look_like_faults(outputs):
    assert said(outputs["a bar"]).split("\n")[-3:] == ["step 1: loss 2.0", "True", ""]


def test_outside_of_a_notebook_lines_beside_a_bar_leave_stdout_to_results(capsys):
    from hftk.console import in_notebook, progress_bar, write_beside

    assert not in_notebook()
    bar = progress_bar(total=3)
    write_beside(bar, "step 1")
    bar.close()
    assert capsys.readouterr().out == ""


def test_a_notebook_on_a_machine_with_two_gpus_uses_one(monkeypatch, tmp_path, capsys):
    """Trainer would wrap the model in nn.DataParallel, which averages losses as it likes."""
    from transformers import TrainingArguments

    import hftk.training.trainer

    class TwoGpus(TrainingArguments):
        def __post_init__(self):
            super().__post_init__()
            self._n_gpu = 2

    monkeypatch.setattr(hftk.training.trainer, "TrainingArguments", TwoGpus)
    config = hftk.CausalLMConfig(
        train=hftk.TrainConfig(learning_rate=1e-3), model=hftk.ModelConfig(size="tiny"), output=str(tmp_path)
    )
    arguments = hftk.training.trainer.make_arguments(config, SimpleNamespace(total_steps=3), 1e-3)
    assert arguments.n_gpu == 1 and "one of 2 GPUs is used" in capsys.readouterr().out
