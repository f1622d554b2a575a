"""``hftk recipes`` and ``hftk new``: the recipes that come with the package, to read and to copy."""

from __future__ import annotations

import ast
import difflib
from argparse import ArgumentParser, Namespace
from pathlib import Path

import hftk
from hftk.cli.model_folder import say, wrong
from hftk.reports.record import write_text

EXAMPLES = """\
example:
  hftk new gpt2_clm my_run.py
  accelerate launch my_run.py --data.path my_texts/"""


def find_recipes() -> dict[str, Path]:
    """Name to file of every recipe: beside the package where it is installed, or beside it in its sources."""
    home = Path(hftk.__file__).parent
    found = next((p for p in (home / "recipes", home.parent / "recipes") if any(p.glob("*.py"))), None)
    if found is None:
        raise wrong(f"expected recipes in {home / 'recipes'}, found none", "install hftk again")
    return {path.stem: path for path in sorted(found.glob("*.py"))}


def add_flags(parser: ArgumentParser) -> None:
    """What ``hftk new`` takes."""
    parser.add_argument("recipe", metavar="RECIPE", help="one of those that hftk recipes lists")
    parser.add_argument(
        "file", metavar="FILE.py", help="where the copy goes; an existing file is not touched"
    )


def list_recipes(given: Namespace) -> int:
    """Print name and purpose of every recipe; return the exit code."""
    recipes = find_recipes()
    width = max(map(len, recipes))
    for name, path in recipes.items():
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        print(f"{name.ljust(width)}  {about.partition(chr(10))[0]}")
    say("hftk new NAME my_run.py copies one; python my_run.py --help lists its settings")
    return 0


def copy_recipe(given: Namespace) -> int:
    """Copy a recipe to a new file, with the new name in the commands of its docstring; return the exit code.

    Raises:
        InputError: no such recipe, or a file that exists, has no place to go or is no .py.
    """
    recipes, target = find_recipes(), Path(given.file).expanduser()
    if given.recipe not in recipes:
        near = difflib.get_close_matches(given.recipe, recipes, n=1)
        fix = f"did you mean {near[0]}?" if near else "hftk recipes lists them"
        raise wrong(f"expected one of the recipes {', '.join(recipes)}, found {given.recipe}", fix)
    if target.suffix != ".py":
        raise wrong(
            f"expected a name that ends in .py, found {target}",
            f"hftk new {given.recipe} {target / given.recipe}.py",
        )
    if target.exists():
        raise wrong(f"{target} exists and is not touched", "choose another name")
    if not target.parent.is_dir():
        raise wrong(f"the folder {target.parent} does not exist", "make it first, or choose another place")
    text = recipes[given.recipe].read_text(encoding="utf-8")
    text = text.replace(f"recipes/{given.recipe}.py", target.name).replace(
        f'"out/{given.recipe}"', f'"out/{target.stem}"'
    )
    try:
        write_text(target, text)
    except OSError as error:
        raise wrong(f"{target} cannot be written: {error.strerror}", "choose another place") from None
    print(target)
    say(f"next: accelerate launch {target}")
    return 0
