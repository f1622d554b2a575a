"""The notebooks run from the first cell to the last, are committed without outputs, and exist in two
languages with one code."""

import asyncio
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
for needed in ("ipykernel", "ipywidgets", "matplotlib"):
    pytest.importorskip(needed)

ROOT = Path(__file__).parents[2]
ENGLISH = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHINESE = sorted((ROOT / "notebooks" / "zh").glob("*.ipynb"))
EVERY = pytest.mark.parametrize(
    "path", ENGLISH + CHINESE, ids=lambda path: path.relative_to(ROOT / "notebooks").as_posix()
)
PLOTS = {
    "gpt2_clm": 4,
    "bert_classification": 5,
    "from_theory_to_practice": 13,
    "marian_translation": 2,
    "t5_summarization": 3,
}
CELL_SECONDS = 600


def read(path):
    return nbformat.read(path, as_version=4)


def cells(notebook, kind):
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def text_of(cell):
    return "".join(output.get("text", "") for output in cell.outputs if output.output_type == "stream")


def plots(notebook):
    outputs = [output for cell in cells(notebook, "code") for output in cell.outputs]
    return [output for output in outputs if "image/png" in output.get("data", {})]


# --- As they are committed


def test_the_number_of_notebooks_is_known():
    assert [path.stem for path in ENGLISH] == sorted(PLOTS), "added one? say here how many plots it has"
    assert [path.name for path in CHINESE] == [path.name for path in ENGLISH]


@EVERY
def test_it_is_valid_and_holds_no_trace_of_a_run(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3" and set(notebook.metadata) == {
        "kernelspec",
        "language_info",
    }
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-z0-9-]+", name) for name in ids)
    for cell in cells(notebook, "code"):
        assert not cell.outputs and cell.execution_count is None and not cell.metadata, cell.id
    assert not re.search(
        r"/(home|root|tmp|work|Users|mnt|opt)/|[A-Z]:\\\\", path.read_text(encoding="utf-8")
    ), "a machine's path"


@EVERY
def test_the_first_code_cell_says_how_to_install_and_does_nothing(path):
    first = cells(read(path), "code")[0].source
    assert "# %pip install hftk" in first and all(line.startswith("#") for line in first.splitlines())


@EVERY
def test_each_text_cell_is_short(path):
    for cell in cells(read(path), "markdown"):
        assert len(cell.source) < 2600, f"{cell.id}: a wall of text"


@pytest.mark.parametrize("path", CHINESE, ids=lambda path: path.stem)
def test_the_chinese_version_has_the_same_cells_and_the_same_code(path):
    chinese, english = read(path), read(ROOT / "notebooks" / path.name)
    assert [(cell.id, cell.cell_type) for cell in chinese.cells] == [
        (cell.id, cell.cell_type) for cell in english.cells
    ]
    for mine, other in zip(chinese.cells, english.cells, strict=True):
        if mine.cell_type == "code":
            assert mine.source == other.source, mine.id
            continue
        assert re.search(r"[\u4e00-\u9fff]{2}", mine.source), f"{mine.id} is not in Chinese"
        for pattern in (
            r"(?m)^#+ ",
            r"```[^`]*```",
            r"(?m)^\d\. ",
            r"\$\$[^$]+\$\$",
        ):  # headings, code, lists, formulas
            found = [
                [re.sub(r"[\s,.]+", "", part) for part in re.findall(pattern, cell.source)]
                for cell in (mine, other)
            ]
            assert found[0] == found[1], f"{mine.id}: {pattern}"


# --- As they run


def execute(notebook, folder, **environment):
    """The notebook with its outputs, run in an empty folder by a kernel of its own."""
    client = nbclient.NotebookClient(
        notebook, timeout=CELL_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    settings = {
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(folder / ".ipython"),
        "PYTHONUTF8": "1",
        "HF_HUB_OFFLINE": "1",
    }
    asyncio.run(client.async_execute(env={**os.environ, **settings, **environment}))
    return notebook


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory):
    """Name to (future of the executed notebook, its folder): those that the tests at hand ask for, two at a
    time."""
    wanted = {
        item.callspec.params["ran"]
        for item in request.session.items
        if "ran" in getattr(item, "fixturenames", ()) and hasattr(item, "callspec")
    }
    folders = {name: tmp_path_factory.mktemp(name) for name in sorted(wanted)}
    longest_first = sorted(folders, key=lambda name: (-PLOTS[name], name))
    with ThreadPoolExecutor(2) as pool:
        yield {
            name: (
                pool.submit(execute, read(ROOT / "notebooks" / f"{name}.ipynb"), folders[name]),
                folders[name],
            )
            for name in longest_first
        }
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def ran(request, runs):
    future, folder = runs[request.param]
    return request.param, future.result(), folder


EACH = pytest.mark.parametrize("ran", sorted(PLOTS), indirect=True)


@pytest.mark.launch
@EACH
def test_it_runs_from_the_first_cell_to_the_last(ran):
    name, notebook, _ = ran
    code = cells(notebook, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert len(plots(notebook)) == PLOTS[name]


@pytest.mark.launch
@EACH
def test_nothing_looks_like_a_fault(ran):
    """stderr is shown on red: warnings there make a reader doubt what is right."""
    _, notebook, _ = ran
    for cell in cells(notebook, "code"):
        complaints = "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stderr")
        assert not re.search(r"warn|error|deprecat|traceback", complaints, flags=re.IGNORECASE), (
            f"{cell.id}: {complaints[:400]}"
        )


@pytest.mark.launch
@pytest.mark.parametrize("ran", sorted(set(PLOTS) - {"from_theory_to_practice"}), indirect=True)
def test_the_scores_have_intervals_and_the_report_is_shown(ran):
    name, notebook, folder = ran
    by_id = {cell.id: cell for cell in notebook.cells}
    assert re.search(r"\w+ [\d.]+.* \[[\d.]+, [\d.]+\]", text_of(by_id["after"]))
    page = folder / "out" / "notebooks" / name / "report.html"
    assert "<h1" in page.read_text(encoding="utf-8")
    shown = [o.data["text/html"] for o in by_id["report"].outputs if "text/html" in o.get("data", {})]
    assert len(shown) == 1 and "srcdoc" in shown[0]


@pytest.mark.slow
@EACH
def test_it_runs_with_the_model_that_the_reader_names(ran, tmp_path):
    """As with a real model from the Hub; here it is the one that the notebook has trained, in a folder of
    another name."""
    name, executed, folder = ran
    theory = name == "from_theory_to_practice"
    shutil.copytree(folder / "out" / "notebooks" / ("theory/base" if theory else name), tmp_path / "model")
    notebook = read(ROOT / "notebooks" / f"{name}.ipynb")
    source = "\n".join(cell.source for cell in cells(notebook, "code"))
    if not theory:
        assert (
            source.count("MODEL = None  #") == 1 and source.count("max_steps=") + source.count("epochs=") == 1
        )
    for cell in cells(notebook, "code"):
        cell.source = cell.source.replace("MODEL = None  #", f"MODEL = {str(tmp_path / 'model')!r}  #")
        if not theory:
            cell.source = re.sub(r"(max_steps|epochs)=\d+", "max_steps=5", cell.source)
            cell.source = re.sub(r"eval_steps=\d+", "eval_steps=5", cell.source)
    again = execute(notebook, tmp_path, HFTK_NOTEBOOK_MODEL=str(tmp_path / "model"))
    assert len(plots(again)) == PLOTS[name] == len(plots(executed))


@pytest.mark.parametrize(
    ("named", "installed", "chosen"),
    [("some/model", True, "some/model: "), (None, True, "packages/model: "), (None, False, "out/base: ")],
)
def test_the_model_of_the_attention_maps_is_chosen_and_said(named, installed, chosen, monkeypatch, capsys):
    """The cell alone: what the environment names comes first, then the installed package, then a model made
    on the spot."""
    (cell,) = [
        cell
        for cell in read(ROOT / "notebooks" / "from_theory_to_practice.ipynb").cells
        if cell.id == "choose-model"
    ]
    monkeypatch.delenv("HFTK_NOTEBOOK_MODEL", raising=False)
    if named:
        monkeypatch.setenv("HFTK_NOTEBOOK_MODEL", named)
    spec = SimpleNamespace(submodule_search_locations=["packages"]) if installed else None
    importing = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: spec))
    trained = []
    exec(
        cell.source,
        {"os": os, "importlib": importing, "config": SimpleNamespace(output="out"), "train": trained.append},
    )
    assert capsys.readouterr().out.replace(os.sep, "/").startswith(chosen)
    assert trained == ([] if named or installed else ["base"])
