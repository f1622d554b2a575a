"""Every recipe against the Hub on loopback: data and base model come from it, the run goes to it, and what is
there works.

Full weights, LoRA, and LoRA over an 8-bit base, for each task; and numbers, several labels and prompted
decoders. The recipes are found by walking the folder.
"""

from __future__ import annotations

import json
import random
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hub_server import USER, Hub, Repo, card_errors
from recipe_runs import code_of, run

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
KINDS = {
    "full": [],
    "lora": ["--model.adapter.method", "lora", "--model.adapter.rank", "2"],
    "8bit": ["--model.adapter.method", "lora", "--model.adapter.rank", "2", "--model.quantization.bits", "8"],
    "loftq": [
        "--model.adapter.method",
        "lora",
        "--model.adapter.initialization",
        "loftq",
        "--model.quantization.bits",
        "4",
    ],
}
OF_ONE_RECIPE = {
    "regression": ("bert_classification", []),
    "several_labels": ("bert_classification", []),
    "prompted": ("t5_summarization", ["--max_target_length", "12", "--prompt_template", "{source} ="]),
}
"""Kind of run to its recipe and what it needs, beside a base with the right data."""
QUICK = {
    ("gpt2_clm", "8bit"),
    ("bert_classification", "loftq"),
    ("bert_classification", "lora"),
    ("t5_summarization", "prompted"),
}
"""With the full runs of all recipes: every recipe and every way of training. The others are slow."""
SHAPES = {
    "gpt2_clm": {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 64},
    "bert_classification": {
        "num_hidden_layers": 1,
        # A block of 4 bits: on processors with AVX512_BF16 bitsandbytes (0.50) takes no narrower layer.
        "hidden_size": 64,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    "t5_summarization": {
        "num_layers": 1,
        "num_decoder_layers": 1,
        "num_heads": 2,
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 32,
    },
    "marian_translation": {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "d_model": 32,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": 64,
    },
}
"""Weights in multiples of 32 per row, which 8-bit kernels want."""
PIPELINES = {
    "gpt2_clm": "text-generation",
    "bert_classification": "text-classification",
    "t5_summarization": "summarization",
    "marian_translation": "translation",
}
WORDS = {"cat": "Katze", "dog": "Hund", "house": "Haus", "tree": "Baum", "river": "Fluss", "small": "klein"}


def rows_for(kind: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Rows with the columns that a recipe looks for, or a kind of run."""
    rng, rows = random.Random(seed), []
    for number in range(count):
        words = [rng.choice(list(WORDS)) for _ in range(5)]
        text = f"{' '.join(words)} {seed}{number}"
        rows.append(
            {
                "gpt2_clm": {"text": text},
                "bert_classification": {"text": text, "label": "wet" if "river" in words else "dry"},
                "t5_summarization": {
                    "document": f"{text}. A {words[0]} and a {words[1]}.",
                    "summary": f"A {words[0]}.",
                },
                "marian_translation": {
                    "en": text,
                    "de": " ".join(WORDS.get(word, word) for word in text.split()),
                },
                "regression": {"text": text, "text_pair": words[1], "label": round(rng.uniform(0, 5), 2)},
                "several_labels": {
                    "text": text,
                    "label": [name for name in ("river", "house") if name in words],
                },
            }[kind]
        )
    return rows


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def sums(recipe: str, name: str, tokenizer: str | None = None) -> str:
    """Code that prints what the model called ``name``, loaded as the card says, makes of one text."""
    head = (
        "CausalLM"
        if "prompted" in name
        else {"gpt2_clm": "CausalLM", "bert_classification": "SequenceClassification"}.get(
            recipe, "Seq2SeqLM"
        )
    )
    more = ", num_labels=2" if recipe == "bert_classification" else ""
    return f"""
import os, torch, transformers
from transformers import AutoTokenizer
from huggingface_hub import file_exists
name = {name!r}
adapter = os.path.isfile(name + "/adapter_config.json") if os.path.isdir(name) else file_exists(name, "adapter_config.json")
if adapter:
    import peft
    model = peft.AutoPeftModelFor{head}.from_pretrained(name{more})
else:
    model = transformers.AutoModelFor{head}.from_pretrained(name)
model.eval()
inputs = AutoTokenizer.from_pretrained(name)("the small cat", return_tensors="pt", return_token_type_ids=False)
if {head == "Seq2SeqLM"}:
    inputs["decoder_input_ids"] = inputs["input_ids"]
with torch.inference_mode():
    print(model(**inputs).logits.double().abs().sum().item())
"""


@pytest.fixture(scope="module")
def base(
    server: Hub, client: Callable[..., SimpleNamespace], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """A function that runs a recipe in one of the ways of KINDS, publishes it and returns its folder; each
    once."""
    made: dict[tuple[str, str], Path] = {}
    for kept in (server.repos, server.blobs, server.calls, server.faults):
        kept.clear()

    def make(recipe: str, kind: str) -> Path:
        if (recipe, kind) in made:
            return made[recipe, kind]
        rows = data_of(recipe, kind)
        files = {
            f"{split}.jsonl": lines(rows_for(rows, count, seed))
            for seed, (split, count) in enumerate({"train": 120, "validation": 20, "test": 20}.items())
        }
        server.repos.setdefault(f"datasets/{USER}/{rows}", Repo(private=True, files=files))
        output = tmp_path_factory.mktemp(recipe) / kind
        shape = [
            word for name, value in SHAPES[recipe].items() for word in (f"--model.config.{name}", str(value))
        ]
        if kind == "full":
            model = ["--model.vocab_size", "300", *shape]
        else:
            make(base_of(recipe, kind), "full")
            model = ["--model.name", f"{USER}/{base_of(recipe, kind)}-full"]
        more = KINDS[kind] if kind in KINDS else OF_ONE_RECIPE[kind][1]
        words = [
            "--data.path",
            f"{USER}/{rows}",
            *model,
            *more,
            "--train.max_steps",
            "3",
            "--train.precision",
            "fp32",
            "--eval.resamples",
            "20",
            "--train.max_length",
            "48",
            "--generation.max_new_tokens",
            "8",
            "--output",
            str(output),
            "--publish.repo",
            f"{USER}/{recipe}-{kind}",
            "--publish.license",
            "mit",
        ]
        done = client(code=run(recipe, words))
        told = done.out + done.err
        assert "exit code 0" in done.out and f"Published: {server.url}/{USER}/{recipe}-{kind}" in done.out, (
            told
        )
        made[recipe, kind] = output
        return output

    return make


def data_of(recipe: str, kind: str) -> str:
    """Name of the data set of a run."""
    return kind if kind in ("regression", "several_labels") else recipe


def base_of(recipe: str, kind: str) -> str:
    """The recipe whose full run is the base of a run."""
    return "gpt2_clm" if kind == "prompted" else recipe


def test_the_recipes_are_those_that_are_tried() -> None:
    assert set(RECIPES) == set(SHAPES) == set(PIPELINES), "a new recipe needs its shape and its rows here"


RUNS = [(recipe, kind) for recipe in RECIPES for kind in KINDS] + [
    (recipe, kind) for kind, (recipe, _) in OF_ONE_RECIPE.items()
]
ALL = [
    pytest.param(
        *each, id="-".join(each), marks=[] if each[1] == "full" or each in QUICK else pytest.mark.slow
    )
    for each in RUNS
]


@pytest.mark.parametrize(("recipe", "kind"), ALL)
def test_what_was_pushed_is_what_was_trained_and_the_card_says_it(
    server: Hub, client: Callable[..., SimpleNamespace], base: Any, recipe: str, kind: str
) -> None:
    adapted = kind in ("lora", "8bit", "loftq")
    if adapted:
        pytest.importorskip("peft")
    if kind in ("8bit", "loftq"):
        pytest.importorskip("bitsandbytes")
    folder, name = base(recipe, kind), f"{USER}/{recipe}-{kind}"
    there, here = (client(code=sums(recipe, where)) for where in (name, str(folder)))
    assert there.code == here.code == 0, there.err + here.err
    assert float(there.out) == pytest.approx(float(here.out), rel=1e-5)

    files = server.repos[name].files
    card = files["README.md"].decode()
    used = client(code=code_of(files["README.md"]))
    assert used.code == 0 and used.out, used.err  # three steps teach nobody to say something
    if kind == "loftq" and "Seq2Seq" not in card:  # which belongs to its rounded base alone
        logits = "\nprint(model(torch.arange(10)[None]).logits.double().tolist())"
        auto = {"bert_classification": "AutoModelForSequenceClassification"}.get(
            recipe, "AutoModelForCausalLM"
        )
        ours = (
            f"import torch\nfrom hftk.models.load import load_trained\nmodel = load_trained({str(folder)!r},"
            f" auto_model={auto!r})[0]"
        )
        said, same = (client(code=code + logits) for code in (code_of(files["README.md"]), ours))
        numbers = [np.array(json.loads(each.out.splitlines()[-1])) for each in (said, same)]
        assert (
            abs(numbers[0] - numbers[1]).max() <= 0.02 * abs(numbers[1]).max()
        )  # the embeddings are in bfloat16 here

    assert card_errors(card) == [] and server.count("POST /api/validate-yaml")
    facts = yaml.safe_load(card.split("---\n")[1])
    data = f"{USER}/{data_of(recipe, kind)}"
    assert (facts["pipeline_tag"], facts["license"], facts["datasets"]) == (PIPELINES[recipe], "mit", [data])
    based = None if kind == "full" else f"{USER}/{base_of(recipe, kind)}-full"
    assert server.count(rf"GET /datasets/{data}/resolve/"), "data come through HF_ENDPOINT"
    assert based is None or server.count(rf"GET /{based}/resolve/\w+/model.safetensors"), "and so do models"
    relation = None if kind == "full" else "adapter" if adapted else "finetune"
    assert (facts.get("base_model"), facts.get("base_model_relation")) == (based, relation)
    assert facts["library_name"] == ("peft" if adapted else "transformers")
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    finals = {s["name"]: s["value"] for s in record["scores"] if s["when"] == "after"}
    again = client(
        code=f"""
import json
from huggingface_hub import ModelCard
print(json.dumps({{r.metric_name: [r.metric_value, r.dataset_type, r.dataset_split, r.metric_args] for r in ModelCard.load({name!r}).data.eval_results}}))
"""
    )
    found = json.loads(again.out)
    assert {metric: values[0] for metric, values in found.items()} == finals and len(finals) >= 2
    for value, dataset, split, exact in found.values():
        assert (dataset, split, exact["n"]) == (data, "test", 20) and exact["signature"]
        assert exact["interval_95"][0] <= value <= exact["interval_95"][1]


FAULTY = [
    pytest.param(*each, id="-".join(each), marks=[] if each in QUICK else pytest.mark.slow)
    for each in RUNS
    if each[1] in KINDS
]


@pytest.mark.parametrize(("recipe", "kind"), FAULTY)
def test_every_fault_keeps_the_files_and_the_printed_command_finishes_the_push(
    server: Hub, client: Callable[..., SimpleNamespace], base: Any, recipe: str, kind: str
) -> None:
    folder = base(recipe, kind)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for status in (401, 409, 429, 500, 0):
        for call in ("PUT", "commit"):
            name = f"{USER}/fault-{status}-{call.lower()}"
            server.blobs.clear()
            server.fail(call, status)
            failed = client("push", folder, "--repo", name)
            server.faults.clear()
            said = f"{recipe} {kind}, {status} at {call}: {failed.err}"
            assert failed.code == (2 if status == 401 else 1) and "Traceback" not in failed.err, said
            assert not server.repos[name].files, f"half a push: {said}"
            assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before, said
            typed = re.search(r"hftk push [^\n]*", failed.err)
            assert typed, said
            finished = client(*shlex.split(typed[0])[1:])
            assert finished.code == 0, finished.err
            sent = {path.name for path in folder.glob("*.safetensors")}
            assert sent and all(
                server.repos[name].files[weights] == (folder / weights).read_bytes() for weights in sent
            )
            del server.repos[name]
