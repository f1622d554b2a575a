"""Stand-ins for what the pages take from elsewhere: a cache of the Hub with tiny models under the pages'
names, and example files."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 256},
    "llama": {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
    },
    "bert": {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64},
    "t5": {"num_layers": 1, "num_decoder_layers": 1, "num_heads": 2, "d_model": 32, "d_kv": 16, "d_ff": 64},
    "marian": {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "d_model": 32,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 256,
    },
}
MODELS = {
    "openai-community/gpt2": "gpt2",
    "uer/gpt2-chinese-cluecorpussmall": "gpt2",
    "HuggingFaceTB/SmolLM2-135M": "llama",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "llama",
    "Qwen/Qwen2.5-0.5B": "llama",
    "google-bert/bert-base-uncased": "bert",
    "google-bert/bert-base-cased": "bert",
    "google-bert/bert-base-chinese": "bert",
    "sentence-transformers/all-MiniLM-L6-v2": "bert",
    "google-t5/t5-small": "t5",
    "google/mt5-small": "t5",
    "Helsinki-NLP/opus-mt-en-de": "marian",
    "Helsinki-NLP/opus-mt-en-zh": "marian",
}
REVISION = "0" * 40
WORDS = {
    "cat": "Katze",
    "dog": "Hund",
    "house": "Haus",
    "tree": "Baum",
    "red": "rot",
    "small": "klein",
    "and": "und",
    "the": "die",
}


def make_models(hub: Path) -> None:
    """A cache folder of the Hub that holds every one of ``MODELS``; each kind is made once."""
    from datasets import ClassLabel, Dataset
    from transformers import AutoModel

    import hftk
    from hftk.task import Splits

    tasks = {
        "gpt2": hftk.CausalLM,
        "llama": hftk.CausalLM,
        "bert": hftk.Classification,
        "t5": hftk.Summarization,
        "marian": hftk.Translation,
    }
    configs = {
        "gpt2": hftk.CausalLMConfig,
        "llama": hftk.CausalLMConfig,
        "bert": hftk.ClassificationConfig,
        "t5": hftk.SummarizationConfig,
        "marian": hftk.TranslationConfig,
    }
    texts = [sentence(random.Random(seed)) for seed in range(100)]
    rows = Dataset.from_dict(
        {"text": texts, "source": texts, "target": texts, "label": [n % 2 for n in range(len(texts))]}
    )
    rows = rows.cast_column("label", ClassLabel(names=["0", "1"]))
    made: dict[str, Path] = {}
    for name, kind in MODELS.items():
        snapshot = hub / f"models--{name.replace('/', '--')}" / "snapshots" / REVISION
        snapshot.mkdir(parents=True)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs/main").write_text(REVISION)
        if kind in made:
            shutil.copytree(made[kind], snapshot, dirs_exist_ok=True)
            continue
        model = hftk.ModelConfig(size="tiny", architecture=kind, vocab_size=400, config=SHAPES[kind])
        task = tasks[kind](configs[kind](model=model))
        splits = Splits(train=rows)
        weights, tokenizer = hftk.load_model(model, task, splits)
        if kind == "bert":
            weights = AutoModel.from_config(weights.config)
        weights.save_pretrained(snapshot)
        tokenizer.save_pretrained(snapshot)
        made[kind] = snapshot


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choice(list(WORDS)) for _ in range(rng.randint(3, 9))) + f" {rng.randint(0, 999)}."


def make_files(project: Path, commands: Path) -> None:
    """The files that the pages speak of, in a folder with the recipes beside them and an environment with
    ``commands``."""
    rng = random.Random(0)
    (project / ".venv").mkdir(parents=True)
    (project / ".venv/bin").symlink_to(commands)
    (project / "recipes").symlink_to(ROOT / "recipes")
    texts = list(dict.fromkeys(sentence(rng) for _ in range(300)))
    lines = {
        "train.jsonl": [{"body": text} for text in texts[:200]],
        "dev.jsonl": [{"body": text} for text in texts[200:]],
        "dialogues.jsonl": [
            {"dialogue": f"A: {text} B: {text.upper()} A: No.", "summary": " ".join(text.split()[:3])}
            for text in texts
        ],
        "articles.jsonl": [
            {"article": f"{text} More follows here. The end.", "summary": text} for text in texts
        ],
        "pairs.jsonl": [{"en": text, "de": german(text)} for text in texts],
        "tagged.jsonl": [
            {"text": text, "label": sorted({w for w in text.split() if w in ("cat", "dog")})}
            for text in texts
        ],
        "questions.jsonl": [
            {"question1": text, "question2": other, "label": int(text[0] == other[0])}
            for text, other in zip(texts, reversed(texts), strict=True)
        ],
    }
    for name, rows in lines.items():
        (project / name).write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
    (project / "reviews.csv").write_text(
        "body,stars\n" + "".join(f"{t},{1 + 4 * ('cat' in t)}\n" for t in texts)
    )
    (project / "评论.csv").write_bytes(
        "内容,情感\n".encode("gb18030")
        + b"".join(f"{chinese(t)},{'正' if 'cat' in t else '负'}\n".encode("gb18030") for t in texts)
    )
    for name in ("my_texts", "诗词"):
        (project / name).mkdir()
        make = chinese if name == "诗词" else str
        (project / name / "one.txt").write_text("\n\n".join(map(make, texts[:150])), encoding="utf-8")
    (project / "more_texts.txt").write_text("\n\n".join(texts[150:]))
    data = project.parent / "shared/data"
    for name in ("mt_multi30k_en_de", "lm_songci_zh"):
        (data / name).mkdir(parents=True)
    for name, part in (
        ("train", texts[:200]),
        ("validation", texts[200:250]),
        ("test_2016_flickr", texts[250:]),
    ):
        rows = [{"en": text, "de": german(text)} for text in part]
        (data / f"mt_multi30k_en_de/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if name != "test_2016_flickr":
            (data / f"lm_songci_zh/{name}.txt").write_text("\n\n".join(map(chinese, part)), encoding="utf-8")


def german(text: str) -> str:
    return " ".join(WORDS.get(word, word) for word in text.split())


def chinese(text: str) -> str:
    signs = dict(zip(WORDS, "猫狗房树红小和这", strict=True))
    return "".join(signs.get(word, word) for word in text.split()).replace(".", "。")
