"""Tables for docs/ about memory and about what runs survive, from
results/{big_models,fsdp_memory,kills,two_hosts,saving}.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ENGLISH = {
    "big_models": (
        "| 60 steps of SmolLM2-135M | weights | of fp32 | perplexity before | after | memory | training"
        " (beside other work) |"
    ),
    "fsdp": (
        "| FSDP2, Llama 2 7B, {devices} devices, {rows} row of {tokens:,} tokens | planned per device |"
        " counted by torch | planned / counted |"
    ),
    "survival": "| what was done to a run | times | wrong |",
    "forked": (
        "SIGKILL at a moment drawn by a seed (of these between a checkpoint's first byte and its rename:"
        " {checkpoint})"
    ),
    "accelerate_launch": "the same through `accelerate launch`, all process groups at once",
    "every_operation_of_a_save": (
        "SIGKILL before each file operation of one save, and in the middle of each write"
    ),
    "power_cuts_during_a_run": (
        "a power cut: disks that may be left when what was not synced is lost, torn or reordered"
        " ({disks_continued} of them continued)"
    ),
    "killed": "one of two machines killed: longest time until the other one had ended",
    "cut": "its link cut: longest time until both had ended",
    "blocked": "time that a save of {mb:,.0f} MB holds training up, as a multiple of Trainer's own",
    "seconds": "s",
    "colon": ": ",
}
CHINESE = {
    "survival": "| 对运行做了什么 | 次数 | 出错 |",
    "forked": "在由种子决定的时刻 SIGKILL（其中落在检查点首字节与改名之间：{checkpoint} 次）",
    "accelerate_launch": "同上，经 `accelerate launch` 启动，同时杀死所有进程组",
    "every_operation_of_a_save": "在一次保存的每个文件操作之前、每次写入的中途 SIGKILL",
    "power_cuts_during_a_run": (
        "断电：未同步的内容丢失、残缺或乱序之后可能留下的磁盘状态（其中 {disks_continued} 个续跑）"
    ),
    "killed": "两台机器之一被杀：另一台结束前的最长时间",
    "cut": "网络被切断：两台都结束前的最长时间",
    "blocked": "保存 {mb:,.0f} MB 时阻塞训练的时间，为 Trainer 自己的倍数",
    "seconds": "秒",
    "colon": "：",
}


def sections(readme: str, folder: Path) -> dict[str, list[str]]:
    """Section of docs/ to the lines of its table, in the language of ``readme``."""
    if "zh" in readme:
        return {"survival": survival(CHINESE, folder)}
    return {"big_models": big_models(folder), "fsdp": fsdp(folder), "survival": survival(ENGLISH, folder)}


def big_models(folder: Path) -> list[str]:
    cases = _stored(folder, "big_models").get("cases", {})
    if not cases:
        return []
    whole = cases["fp32, all weights"]["weight_bytes"]
    lines = _heading(ENGLISH["big_models"])
    for name, case in cases.items():
        low, high = case["perplexity_after"]["interval"]
        lines.append(
            _row(
                name,
                f"{case['weight_bytes'] / 1e6:.0f} MB",
                f"{case['weight_bytes'] / whole:.3f}",
                f"{case['perplexity_before']['value']:.2f}",
                f"{case['perplexity_after']['value']:.2f} [{low:.2f}, {high:.2f}]",
                f"{case['memory_rise_bytes'] / 1e9:.2f} GB",
                f"{case['seconds']['train']:.0f} s",
            )
        )
    return lines


def fsdp(folder: Path) -> list[str]:
    found = _stored(folder, "fsdp_memory")
    rows = [
        _row(
            name,
            _gigabytes(case["planned_bytes"]),
            _gigabytes(case["counted_bytes"]["total"]),
            f"{case['ratio']:.2f}",
        )
        for name, case in found.get("cases", {}).items()
    ]
    return [*_heading(ENGLISH["fsdp"].format(**found)), *rows] if rows else []


def survival(words: dict[str, str], folder: Path) -> list[str]:
    """Kills, power cuts, lost machines; and what saves cost."""
    kills, hosts, saving = (_stored(folder, name) for name in ("kills", "two_hosts", "saving"))
    if not (kills and hosts and saving):
        return []
    lines = _heading(words["survival"])
    for name in ("forked", "accelerate_launch", "every_operation_of_a_save", "power_cuts_during_a_run"):
        part = kills[name]
        times = part.get("kills") or part["disks"]
        lines.append(
            _row(words[name].format(**part, **part.get("hits", {})), f"{times:,}", len(part["wrong"]))
        )
    for fault in ("killed", "cut"):
        runs = [run for run in hosts["runs"] if run["fault"] == fault]
        longest = max(max(run["seconds_to_the_end"].values()) for run in runs)
        short = [
            run for run in runs if run["steps_after_resuming"] != max(r["steps_after_resuming"] for r in runs)
        ]
        lines.append(
            _row(f"{words[fault]}{words['colon']}{longest:.1f} {words['seconds']}", len(runs), len(short))
        )
    for model in saving["models"].values():
        blocked = model["blocked"]
        text = words["blocked"].format(mb=model["checkpoint_mb"])
        lines.append(_row(f"{text}{words['colon']}{blocked['ratio']:.2f}", len(blocked["ratios"]), "–"))
    return lines


def _stored(folder: Path, name: str) -> dict[str, Any]:
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _heading(head: str) -> list[str]:
    return [head, "|---" * (head.count("|") - 1) + "|"]


def _row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"
