from __future__ import annotations

import ast
import re
import sys

import pytest

from hftk.config import DataConfig
from hftk.data.load import load_splits
from hftk.data.samples import load_sample, read_docstrings


@pytest.fixture(scope="module")
def imported() -> set[str]:
    """Modules that loading the sample imported."""
    return set()


@pytest.fixture(scope="module")
def rows(imported) -> list[dict[str, str]]:
    before = set(sys.modules)
    loaded = load_sample("python_docs")
    imported.update(set(sys.modules) - before)
    return loaded


def test_python_docs_is_about_a_megabyte_of_distinct_documents(rows):
    size = sum(len(row["text"].encode()) for row in rows)
    assert 800_000 <= size <= 1_300_000
    names = {row["name"] for row in rows}
    assert len(names) == len(rows) > 100
    assert not any(name.startswith(("test.", "idlelib")) for name in names)
    assert all(row["text"].strip() and not re.search(r"^\*{4,}$", row["text"], re.MULTILINE) for row in rows)


def test_python_docs_imports_no_module_it_reads(rows, imported):
    assert {name for name in imported if not name.startswith("_sysconfigdata")} <= {
        "pydoc_data",
        "pydoc_data.topics",
    }


def test_python_docs_is_the_same_each_time_and_loads_as_one_unsplit_source(lm, rows):
    splits = load_splits(DataConfig(sample="python_docs"), lm)
    assert splits.validation is not None and splits.test is not None
    texts = {text for part in (splits.train, splits.validation, splits.test) for text in part["text"]}
    assert splits.train.column_names == ["text"]
    assert texts == {row["text"] for row in rows}


def test_docstrings_are_those_that_ast_finds(tmp_path):
    source = (
        '"""Module."""\nclass A:\n    """Class."""\n    def f(self):\n        """Method.\n\n       '
        ' More."""\n\ndef g(): pass\n'
    )
    path = tmp_path / "m.py"
    path.write_text(source)
    found = [(d.name, d.kind, d.text) for d in read_docstrings("m", path)]
    assert found == [
        ("", "module", "Module."),
        ("A", "class", "Class."),
        ("A.f", "function", "Method.\n\nMore."),
    ]
    assert [d.owner for d in read_docstrings("m", path)] == ["m", "m.A", "m.A"]
    assert [text for *_, text in found] == [
        text
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if (text := ast.get_docstring(node))
    ]


def test_an_unknown_sample_is_named_with_the_nearest_one(refusal):
    assert "did you mean python_docs?" in refusal(load_sample, "python_doc")
