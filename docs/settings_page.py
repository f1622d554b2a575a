"""The page docs/settings.md: every setting with its meaning, from the lines under the fields of the configs.

``python docs/settings_page.py`` writes it, and a test checks that it is up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE / "settings.md"
HEAD = """\
# Settings

Every recipe takes these as flags, and as YAML by `--config FILE.yaml` under the same names (`train.epochs` is
`epochs` under `train`). Flags win over files, later files over earlier ones, and both over the recipe's
`CONFIG`. The `--help` of a recipe shows the same list with that recipe's own values; the defaults here are
those of the classes. `none` unsets a setting that may be unset.

<!-- Written by docs/settings_page.py from the configs in hftk/: edit those. -->
"""
SECTIONS = {
    "data": "Data",
    "model": "Model",
    "model.quantization": "Quantization",
    "model.adapter": "Adapter",
    "train": "Training",
    "eval": "Evaluation",
    "generation": "Generation",
    "publish": "Publishing",
    "": "Run",
}


def render() -> str:
    """The page as Markdown."""
    import hftk
    from hftk.config.settings import read_settings

    common = read_settings(hftk.RunConfig())
    by_section: dict[str, list[Any]] = {name: [] for name in SECTIONS}
    for item in common.values():
        by_section.setdefault(item.name.rpartition(".")[0], []).append(item)
    parts = [HEAD]
    for section, items in by_section.items():
        parts.append(_section(SECTIONS.get(section, section), items))
    configs = {
        "Language models": hftk.CausalLMConfig,
        "Classification": hftk.ClassificationConfig,
        "Summarization": hftk.SummarizationConfig,
        "Translation": hftk.TranslationConfig,
    }
    for title, config in configs.items():
        own = [item for name, item in read_settings(config()).items() if name not in common]
        parts.append(_section(title, own))
    return "\n".join(parts)


def _section(title: str, items: list[Any]) -> str:
    rows = [f"| {_flag(item)} | {_cell(item.meaning)}{_default(item)} |" for item in items]
    return "\n".join([f"## {title}", "", "| setting | meaning |", "|---|---|", *rows, ""])


def _flag(item: Any) -> str:
    from hftk.config.settings import metavar

    name = f"--{item.name}.NAME" if item.mapping is not None else f"--{item.name}"
    return f"`{name}` {metavar(item).replace('|', ', ')}"


def _default(item: Any) -> str:
    from hftk.config.settings import show

    if item.value is None and "Default:" in item.meaning:
        return ""
    value = item.value if isinstance(item.value, str) and item.value else show(item.value)
    return f" Default: `{value}`."


def _cell(text: str) -> str:
    return (
        text.replace("|", "\\|")
        .replace("<", "&lt;")
        .replace("*", "\\*")
        .replace("_", "\\_")
        .replace("{", "&#123;")
    )


def main() -> None:
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    main()
