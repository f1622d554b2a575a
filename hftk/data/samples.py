"""Sample data sets made from what every Python installation carries: no download and no licence question.

``python_modules`` has docstrings of the standard library's largest packages, to be told apart.
``python_docs`` is the language reference that ``help()`` shows (:mod:`pydoc_data.topics`) and the docstrings
of the standard library, read from its source by :mod:`ast` without importing anything. It is deterministic
for a given Python version.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import Any

from hftk.config import InputError, Problem
from hftk.data.stdlib import stdlib_modules
from hftk.data.tables import did_you_mean

CHARACTERS = 1_000_000
"""Where python_docs stops taking modules."""
PACKAGES = 8
PER_PACKAGE = 400

_RULE = re.compile(r"^[*=~^\-]{4,}\n?", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Docstring:
    """One docstring of the standard library."""

    module: str
    """Dotted name of the module."""
    name: str
    """Qualified name inside the module; "" for the module itself."""
    kind: str
    """module, class or function."""
    text: str
    """Without indentation."""
    owner: str
    """Dotted name of the outermost class it belongs to, else of the module."""


def load_sample(name: str) -> list[dict[str, Any]]:
    """The rows of a sample data set, in a fixed order. InputError for an unknown name."""
    if name not in SAMPLES:
        raise InputError(
            Problem(
                setting="data.sample",
                message=f"expected the name of a sample, found {name}{did_you_mean(name, SAMPLES)}",
                fix=f"choose among {', '.join(SAMPLES)}",
            )
        )
    return SAMPLES[name]()


def python_docs() -> list[dict[str, Any]]:
    """About 1 MB of English about Python: columns ``text`` and ``name``; a row is a topic
    (``topics/numbers``), the docstrings of a module and its functions (``numbers``), or those of a class and
    its methods (``numbers.Real``).

    Modules come in the order of a hash of their name until the size is reached, so that the choice has no
    slant.
    """
    from pydoc_data.topics import topics

    rows = [{"name": f"topics/{name}", "text": _without_rules(text)} for name, text in sorted(topics.items())]
    size = sum(len(row["text"]) for row in rows)
    for module, path in sorted(
        stdlib_modules(), key=lambda item: blake2b(item[0].encode(), digest_size=8).digest()
    ):
        if size >= CHARACTERS:
            break
        documents: dict[str, list[str]] = {}
        for docstring in read_docstrings(module, path):
            if len(docstring.text) >= 40:
                documents.setdefault(docstring.owner, []).append(docstring.text)
        for name, parts in documents.items():
            text = _without_rules("\n\n".join(parts))
            if len(text) >= 200:
                rows.append({"name": name, "text": text})
                size += len(text)
    return rows


def python_modules() -> list[dict[str, Any]]:
    """Docstrings and the package they come from: columns ``text`` and ``label``, the :data:`PACKAGES`
    packages of the standard library with the most of them, at most :data:`PER_PACKAGE` each.

    A docstring has at least 30 characters and occurs in one package only. Which of a package are taken
    follows from their hash.
    """
    texts: dict[str, set[str]] = {}
    for docstring in stdlib_docstrings():
        if len(docstring.text) >= 30:
            texts.setdefault(docstring.text, set()).add(docstring.module.partition(".")[0])
    packages: dict[str, list[str]] = {}
    for text, owners in texts.items():
        if len(owners) == 1:
            packages.setdefault(min(owners), []).append(text)
    largest = sorted(packages, key=lambda name: (-len(packages[name]), name))[:PACKAGES]
    rows = []
    for name in sorted(largest):
        chosen = sorted(packages[name], key=lambda text: blake2b(text.encode(), digest_size=8).digest())
        rows += [{"text": text, "label": name} for text in chosen[:PER_PACKAGE]]
    return rows


def stdlib_docstrings() -> Iterator[Docstring]:
    """Every docstring of the standard library, sorted by module, in source order inside one."""
    for module, path in stdlib_modules():
        yield from read_docstrings(module, path)


def read_docstrings(module: str, path: Path) -> Iterator[Docstring]:
    """The docstrings of a source file, without importing it: module, classes, functions and methods."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # templates and sources for another version
        return
    yield from _docstrings(tree, module, "", module)


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
    module: str,
    name: str,
    owner: str,
) -> Iterator[Docstring]:
    text = (ast.get_docstring(node) or "").strip()
    if text:
        kind = (
            "class"
            if isinstance(node, ast.ClassDef)
            else "module"
            if isinstance(node, ast.Module)
            else "function"
        )
        yield Docstring(module=module, name=name, kind=kind, text=text, owner=owner)
    if isinstance(node, (ast.Module, ast.ClassDef)):
        for child in node.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                inside = f"{module}.{child.name}" if isinstance(child, ast.ClassDef) and not name else owner
                yield from _docstrings(child, module, f"{name}.{child.name}" if name else child.name, inside)


def _without_rules(text: str) -> str:
    """The text without the lines of stars and dashes that underline headings."""
    return _RULE.sub("", text).strip()


def _pairs(function: str, *arguments: str) -> list[dict[str, Any]]:
    """Rows of a sample in :mod:`hftk.data.pairs`, which reads more than the standard library."""
    rows: list[dict[str, Any]] = getattr(import_module("hftk.data.pairs"), function)(*arguments)
    return rows


SAMPLES: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "python_docs": python_docs,
    "python_modules": python_modules,
    "docstring_summaries": partial(_pairs, "docstring_summaries"),
    "cldr_en_de": partial(_pairs, "cldr", "de"),
    "cldr_en_zh": partial(_pairs, "cldr", "zh"),
}
"""Name, as in ``--data.sample``, to the function that makes the rows."""
