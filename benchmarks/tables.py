"""Write the tables of numbers in the READMEs and in docs/ from results/*.json.

    python benchmarks/tables.py            # a test checks that they are up to date

results/NAME.json is the record.json of the run NAME, copied there; the others are written by the benchmarks
of their names.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import tables_of_machines  # noqa: E402

RUNS = {
    "quickstart": "make quickstart",
    "shakespeare_char": "recipes/configs/shakespeare_char.yaml",
    "shakespeare_bpe": "recipes/configs/shakespeare_bpe.yaml",
    "songci_zh": "recipes/configs/songci_zh.yaml",
    "smollm2_wikitext": "recipes/configs/smollm2_wikitext.yaml",
}
CLASSIFIERS = {
    "bert_classification": "recipes/bert_classification.py",
    "sst2_minilm": "recipes/configs/sst2_minilm.yaml",
    "agnews_minilm": "recipes/configs/agnews_minilm.yaml",
    "hotel_zh": "recipes/configs/hotel_zh.yaml",
    "goemotions_minilm": "recipes/configs/goemotions_minilm.yaml",
    "mrpc_minilm": "recipes/configs/mrpc_minilm.yaml",
    "sick_labels_minilm": "recipes/configs/sick_labels_minilm.yaml",
    "sick_scores_minilm": "recipes/configs/sick_scores_minilm.yaml",
}
WRITERS = {
    "marian_translation": "recipes/marian_translation.py",
    "multi30k_en_de": "recipes/configs/multi30k_en_de.yaml",
    "tatoeba_en_zh": "recipes/configs/tatoeba_en_zh.yaml",
    "t5_summarization": "recipes/t5_summarization.py",
    "dialogsum_minilm": "recipes/configs/dialogsum_minilm.yaml",
    "dialogsum_smollm2": "recipes/configs/dialogsum_smollm2.yaml",
    "dialogsum_smollm2_lora": "recipes/configs/dialogsum_smollm2_lora.yaml",
    "csl_title_zh": "recipes/configs/csl_title_zh.yaml",
}
BUSY = (
    "shakespeare_bpe",
    "songci_zh",
    "smollm2_wikitext",
    "multi30k_en_de",
    "dialogsum_minilm",
    "dialogsum_smollm2",
    "dialogsum_smollm2_lora",
)
"""Runs beside which other processes worked."""
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
WORDS = {
    "README.md": {
        "head": (
            "| run | judged on | perplexity before | after | bigram model | bits per byte | training |"
            " tokens/s |"
        ),
        "classifiers": "| run | judged on | score | before | after | TF-IDF baseline | majority baseline |",
        "writers": (
            "| run | judged on | score | after | best baseline | trained parameters | training | tokens/s |"
        ),
        "script": (
            "Beside Hugging Face's `run_classification.py` at its own defaults on the same model, data and"
            " cores (`benchmarks/run_classification.py`): {ratio:.1f} times its real tokens per second"
            " ({dynamic:.1f} times those of the script with dynamic padding); test accuracy {ours:.4f} with"
            " the settings of `sst2_minilm.yaml`, {theirs:.4f} by the script with dynamic padding (means of"
            " {seeds} seeds)."
        ),
        "translation": (
            "Beside Hugging Face's `run_translation.py` at its own defaults on the same model, data, batch"
            " size and cores, in fp32 (`benchmarks/run_translation.py`): losses, outputs and BLEU of"
            " {rows:,} test rows {greedy:.1f} times as fast greedily and"
            " {beam:.1f} times with 4 beams, {identical:,} and {identical_beam:,} outputs identical."
        ),
        "minutes": "min",
        "note": (
            "Perplexities are per token of each run's own tokenizer, with 95 % bootstrap intervals; bits per"
            " byte compare across them. Each row is a `record.json` in `results/`, measured on {cpu}, {cores}"
            " cores; other work ran beside {busy}, whose times are upper bounds."
        ),
        "nanogpt": (
            "Beside nanoGPT's own `train.py` on the same cores (`benchmarks/nanogpt.py`, {rounds} rounds in"
            " turn, whole processes): {time} times its wall time, validation loss {ours} against {theirs}"
            " nats per character; with better settings (`shakespeare_char_better.yaml`) {better} in"
            " {better_time} times its wall time."
        ),
    },
    "README.zh-CN.md": {
        "head": "| 运行 | 评价数据 | 训练前困惑度 | 训练后 | 二元模型 | 每字节比特 | 训练时间 | token/秒 |",
        "classifiers": "| 运行 | 评价数据 | 指标 | 训练前 | 训练后 | TF-IDF 基线 | 多数类基线 |",
        "writers": "| 运行 | 评价数据 | 指标 | 训练后 | 最好的基线 | 训练的参数 | 训练时间 | token/秒 |",
        "script": (
            "与 Hugging Face 的 `run_classification.py`（默认设置，同样的模型、"
            "数据和核）相比（`benchmarks/run_classification.py`）：每秒真实 token 数是它的 {ratio:.1f}"
            " 倍（与动态填充的脚本相比为 {dynamic:.1f} 倍）；按 `sst2_minilm.yaml` 的设置，测试准确率为"
            " {ours:.4f}，动态填充的脚本为 {theirs:.4f}（{seeds} 个种子的平均）。"
        ),
        "translation": (
            "与 Hugging Face 的 `run_translation.py`（默认设置，同样的模型、数据、批大小和核，"
            "fp32）相比（`benchmarks/run_translation.py`）：{rows:,} 行测试数据的损失、输出和 BLEU，"
            "贪心时是它的 {greedy:.1f} 倍速度，4 个 beam 时 {beam:.1f} 倍，其中 {identical:,} 和"
            " {identical_beam:,} 个输出完全相同。"
        ),
        "minutes": "分钟",
        "note": (
            "困惑度按各自分词器的 token 计算，方括号内是 95 % 自助法区间；每字节比特可以跨分词器比较。"
            "每一行都是 `results/` 中的一份 "
            "`record.json`，机器为 {cpu}，{cores} 核；{busy} 运行时机器上还有其他任务，时间只是上限。"
        ),
        "nanogpt": (
            "与 nanoGPT 自己的 `train.py` 在同样的核上交替运行 {rounds} 轮、"
            "计整个进程的时间（`benchmarks/nanogpt.py`）：用时是它的 {time} 倍，验证损失 {ours} 对"
            " {theirs}（nat/字符）；用更好的设置（`shakespeare_char_better.yaml`）为 {better}，用时是它的"
            " {better_time} 倍。"
        ),
    },
}


STOCK = {
    "one_step": (
        "| model | loss, stock | loss, hftk | gradient's length, stock | hftk | its cosine with the right"
        " one, stock | hftk |"
    ),
    "split": "{rows}\u00a0x\u00a0{size}",
    "eval_loss": "| batch size | right | stock | hftk |",
    "two_processes": "| | right | stock | hftk |",
    "outputs": "summaries generated for {rows} rows",
    "loss": "BERT's validation loss, as a multiple of the right one",
    "identical_texts": "| language | ROUGE-L, `rouge_score` | hftk | BLEU, sacreBLEU's default | hftk |",
    "others": "| | right | stock | hftk |",
    "sequential": "outputs of `predict()` at their own row, of {rows}",
    "ends": (
        "end tokens that are trained in {documents} documents, padding token = end token"
        " (`DataCollatorForLanguageModeling`)"
    ),
    "order": 'the same with `train_sampling_strategy="group_by_length"`',
}
LANGUAGES = {"zh": "中文", "ja": "日本語", "ru": "русский", "en": "English"}


def table(words: dict[str, str], folder: Path) -> str:
    """The Markdown between the markers of the READMEs, from the results that there are."""
    lines, machine = runs(words, folder)
    lines += ["", *others] if (others := classifiers(words, folder)) else []
    lines += ["", *others] if (others := writers(words, folder)) else []
    if machine is None:
        return ""
    lines += ["", noted(words, machine, folder, {**RUNS, **CLASSIFIERS, **WRITERS})]
    for compare in (beside_nanogpt, beside_run_classification, beside_run_translation):
        lines += ["", *found] if (found := compare(words, folder)) else []
    return "\n".join(lines)


def noted(words: dict[str, str], machine: dict[str, Any], folder: Path, shown: dict[str, str]) -> str:
    """What to know of the numbers of the runs that are ``shown``."""
    busy = ", ".join(name for name in BUSY if name in shown and (folder / f"{name}.json").exists())
    return words["note"].format(cpu=machine["cpu"], cores=machine["cores"], busy=busy)


def runs(words: dict[str, str], folder: Path) -> tuple[list[str], dict[str, Any] | None]:
    """The table of language models, and the machine that they ran on."""
    lines, machine = heading(words["head"]), None
    for name, shown in RUNS.items():
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        machine = record["hardware"]
        minutes = f"{record['seconds']['train'] / 60:.1f} {words['minutes']}"
        cells = [
            f"`{shown}`",
            score(record, "after", "perplexity")["split"],
            value(record, "before", "perplexity"),
            with_interval(score(record, "after", "perplexity")),
            value(record, "baseline:bigram", "perplexity"),
            with_interval(score(record, "after", "bits_per_byte")),
            minutes,
            f"{record['tokens_per_second']:,.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines, machine


def beside_nanogpt(words: dict[str, str], folder: Path) -> list[str]:
    found = stored(folder, "nanogpt")
    if not found:
        return []
    loss, ratio = found["loss_nats_per_character"], found["time_ratio_to_nanogpt"]
    return [
        words["nanogpt"].format(
            rounds=len(found["seconds_of_whole_process"]["hftk"]),
            time=ratio["hftk"],
            ours=f"{loss['hftk']:.3f}",
            theirs=f"{loss['nanogpt']:.3f}",
            better=f"{loss['hftk_better']:.3f}",
            better_time=ratio["hftk_better"],
        )
    ]


def beside_run_classification(words: dict[str, str], folder: Path) -> list[str]:
    found = stored(folder, "run_classification")
    if not found:
        return []
    systems, ratio = found["systems"], found["throughput_ratio"]
    return [
        words["script"].format(
            ratio=ratio["hftk_to_script_default"]["of_means"],
            dynamic=ratio["hftk_to_script_dynamic"]["of_means"],
            ours=systems["hftk"]["test_accuracy"],
            theirs=systems["script_dynamic"]["test_accuracy"],
            seeds=len(systems["hftk"]["per_seed"]),
        )
    ]


def beside_run_translation(words: dict[str, str], folder: Path) -> list[str]:
    found = stored(folder, "run_translation")
    if not found:
        return []
    systems = found["evaluation"]["systems"]
    greedy, beam = systems["hftk_greedy"], systems["hftk_beam_4"]
    return [
        words["translation"].format(
            rows=found["evaluation"]["rows"],
            greedy=greedy["times_as_fast"],
            beam=beam["times_as_fast"],
            identical=greedy["identical_rows"],
            identical_beam=beam["identical_rows"],
        )
    ]


def classifiers(words: dict[str, str], folder: Path) -> list[str]:
    """The table of classification runs, each by the first score of its kind of problem."""
    lines = []
    for name, shown in CLASSIFIERS.items():
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        main = next(s for s in record["scores"] if s["when"] == "after")
        others = [
            number(score(record, when, main["name"])["value"])
            for when in ("before", "baseline:tfidf", "baseline:majority")
        ]
        low, high = main["interval"]
        cells = [
            f"`{shown}`",
            main["split"],
            main["name"],
            others[0],
            f"{main['value']:.4f} [{low:.4f}, {high:.4f}]",
            *others[1:],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*heading(words["classifiers"]), *lines] if lines else []


def writers(words: dict[str, str], folder: Path, task: str = "") -> list[str]:
    """The table of runs that write texts (those of one task), each by the first score of its task."""
    lines = []
    for name, shown in WRITERS.items():
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        if task not in ("", record["task"]):
            continue
        main = next(s for s in record["scores"] if s["when"] == "after")
        same = [
            s for s in record["scores"] if s["when"].startswith("baseline:") and s["name"] == main["name"]
        ]
        best = max(same, key=lambda s: s["value"])
        low, high = main["interval"]
        cells = [
            f"`{shown}`",
            main["split"],
            main["name"],
            f"{main['value']:.2f} [{low:.2f}, {high:.2f}]",
            f"{best['value']:.2f} ({best['when'].removeprefix('baseline:')})",
            f"{record['model']['parameters_trained'] / 1e6:.2f} M",
            f"{record['seconds']['train'] / 60:.1f} {words['minutes']}",
            f"{record['tokens_per_second']:,.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*heading(words["writers"]), *lines] if lines else []


# --- docs/


def beside_stock_trainer(words: dict[str, str], folder: Path) -> dict[str, list[str]]:
    """Section of docs/stock-trainer.md to its table."""
    found = stored(folder, "stock_trainer")
    if not found:
        return {}
    names = {"gpt2": "GPT-2", "bert": "BERT", "t5": "T5", "marian": "Marian"}
    steps, losses, two, ends, order = (
        found[key] for key in ("one_step", "eval_loss", "two_processes", "end_tokens", "grouped_order")
    )
    one_step = [
        row(
            f"{names[kind]}, {words['split'].format(rows=len(found['lengths']) // int(size), size=size)}",
            *(
                f"{case[side][key]:.4g}"
                for key in ("loss_ratio", "gradient_ratio", "cosine")
                for side in ("stock", "hftk")
            ),
        )
        for kind, cases in steps.items()
        for size, case in cases.items()
    ]
    texts: dict[str, dict[str, Any]] = {}
    for case in found["identical_texts"]:
        texts.setdefault(case["language"], {})[case["score"]] = case
    return {
        "one_step": [*heading(words["one_step"]), *one_step],
        "eval_loss": [
            *heading(words["eval_loss"]),
            *(
                row(
                    size,
                    *(
                        f"{value:.4f}"
                        for value in (losses["right"], losses["stock"][size], losses["hftk"][size])
                    ),
                )
                for size in losses["stock"]
            ),
        ],
        "two_processes": [
            *heading(words["two_processes"]),
            row(
                words["outputs"].format(rows=two["rows"]),
                two["rows"],
                two["stock_outputs"],
                two["hftk_outputs"],
            ),
            row(
                words["loss"], 1, f"{two['stock_eval_loss_ratio']:.4g}", f"{two['hftk_eval_loss_ratio']:.4g}"
            ),
        ],
        "identical_texts": [
            *heading(words["identical_texts"]),
            *(
                row(
                    LANGUAGES[name],
                    *(
                        f"{case[score][side]:.1f}"
                        for score in ("rougeL", "bleu")
                        for side in ("stock", "hftk")
                    ),
                )
                for name, case in texts.items()
            ),
        ],
        "others": [
            *heading(words["others"]),
            row(words["ends"].format(**ends), ends["documents"], ends["stock"], ends["hftk"]),
            row(words["sequential"].format(**order), order["rows"], order["stock_sequential"], order["hftk"]),
            row(words["order"], order["rows"], order["stock"], order["hftk"]),
        ],
    }


def sections(readme: str, folder: Path) -> dict[str, list[str]]:
    """Section of a page of docs/ to its lines, in the language of ``readme``."""
    words = WORDS[readme]
    language_models, machine = runs(words, folder)
    note = [] if machine is None else ["", noted(words, machine, folder, RUNS)]

    def joined(*parts: list[str]) -> list[str]:
        return [line for part in parts if part for line in ("", *part)][1:]

    return {
        "causal_lm": joined([*language_models, *note], beside_nanogpt(words, folder)),
        "classification": joined(classifiers(words, folder), beside_run_classification(words, folder)),
        "summarization": writers(words, folder, "summarization"),
        "translation": joined(writers(words, folder, "translation"), beside_run_translation(words, folder)),
        **(beside_stock_trainer(STOCK, folder) if readme == "README.md" else {}),
        **tables_of_machines.sections(readme, folder),
    }


def filled_page(text: str, parts: dict[str, list[str]]) -> str:
    """A page of docs/ with each ``<!-- results: NAME -->`` followed by its section."""

    def section(found: re.Match[str]) -> str:
        return f"{found[1]}\n{''.join(line + chr(10) for line in parts.get(found[2], []))}{END}"

    return re.sub(rf"(<!-- results: (\w+) -->)\n.*?{END}", section, text, flags=re.DOTALL)


def pages() -> dict[Path, Callable[[str], str]]:
    """Every file with numbers, and what puts them into its text."""
    made: dict[Path, Callable[[str], str]] = {}
    for readme, words in WORDS.items():
        inside = table(words, ROOT / "results")
        made[ROOT / readme] = lambda text, inside=inside: filled(text, inside)
        parts = sections(readme, ROOT / "results")
        for path in sorted((ROOT / "docs").rglob("*.md")):
            if ("zh" in path.relative_to(ROOT / "docs").parts) == ("zh" in readme):
                made[path] = lambda text, parts=parts: filled_page(text, parts)
    return made


def stored(folder: Path, name: str) -> Any:
    """What is in results/NAME.json, or None."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def heading(head: str) -> list[str]:
    return [head, "|---" * (head.count("|") - 1) + "|"]


def row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def number(found: float | None) -> str:
    return "–" if found is None else f"{found:.4f}"


def score(record: dict[str, Any], when: str, name: str) -> dict[str, Any]:
    return next(s for s in record["scores"] if s["when"] == when and s["name"] == name)


def value(record: dict[str, Any], when: str, name: str) -> str:
    return f"{score(record, when, name)['value']:,.2f}"


def with_interval(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['value']:.2f} [{low:.2f}, {high:.2f}]"


def filled(text: str, inside: str) -> str:
    """``text`` with ``inside`` between the markers."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{inside}\n{END}{rest.split(END)[1]}"


def main() -> None:
    for path, fill in pages().items():
        text = path.read_text(encoding="utf-8")
        if fill(text) != text:
            path.write_text(fill(text), encoding="utf-8")


if __name__ == "__main__":
    main()
