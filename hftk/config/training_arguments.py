"""The fields of transformers' ``TrainingArguments`` and their types, without importing them; which names hold
secrets."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SECRET = re.compile(r"(?:^|_)(?:token|api_?key|password|secret)$", re.IGNORECASE)
"""Matches names under which people pass secrets."""

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "dict": "a mapping",
    "list": "a list",
    "None": "none",
}


@functools.cache
def argument_types() -> Mapping[str, frozenset[str]]:
    """Field of the installed ``TrainingArguments`` to the names of the types it takes, such as {"float",
    "None"}.

    Read off the source file: importing it takes 7 s, reading it 0.06 s.
    """
    found = importlib.util.find_spec("transformers")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("transformers is not installed: pip install transformers")
    module = ast.parse((Path(found.origin).parent / "training_args.py").read_text(encoding="utf-8"))
    body = next(
        node.body
        for node in module.body
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments"
    )
    return {
        node.target.id: frozenset(_type_names(node.annotation))
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _type_names(annotation: ast.expr) -> Iterator[str]:
    """The top-level types of an annotation, without their parameters: ``dict[str, Any] | None`` gives dict,
    None."""
    if isinstance(annotation, ast.BinOp):
        yield from _type_names(annotation.left)
        yield from _type_names(annotation.right)
    elif isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        yield from (
            type(value).__name__ for value in ast.literal_eval(ast.Tuple([annotation.slice], ast.Load()))
        )
    elif isinstance(annotation, ast.Subscript):
        yield from _type_names(annotation.value)
    else:
        yield ast.unparse(annotation)


def secrets(values: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the entries, also nested ones, that look like secrets."""
    for key, value in values.items():
        if SECRET.search(str(key)):
            yield f"{prefix}{key}"
        elif isinstance(value, Mapping):
            yield from secrets(value, f"{prefix}{key}.")


def wrong_type(value: Any, expected: frozenset[str]) -> str:
    """What is wrong with a value for a field of the types ``expected``, in one sentence; "" if nothing is."""
    if value is None or isinstance(value, bool):
        found = {"None"} if value is None else {"bool"}
    else:
        found = {kind.__name__ for kind in type(value).__mro__} | (
            {"float"} if isinstance(value, int) else set()
        )
    if found & expected:
        return ""
    words = [_WORDS.get(kind, kind) for kind in sorted(expected, key=lambda kind: (kind == "None", kind))]
    hint = " (for text that looks like something else, quote it twice: '\"5\"')" if "str" in expected else ""
    return f"expected {' or '.join(words)}, found {value!r:.60}{hint}"
