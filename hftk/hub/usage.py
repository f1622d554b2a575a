"""The code that a model card shows: the model loaded by transformers (or PEFT) alone and used once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hftk.models.adapter_files import ADAPTER, QUANTIZATION, ROUNDED, read_base_config
from hftk.reports.record import RunRecord

PROMPT = "Once upon a time"
MOST_CHARACTERS = 200
NEW_TOKENS = 64
SHORT_CONTEXT = 1024
"""Tokens; below it the prompt of the example is cut, so that prompt and continuation fit."""
HEADS = {
    "causal_lm": "CausalLM",
    "classification": "SequenceClassification",
    "summarization": "Seq2SeqLM",
    "translation": "Seq2SeqLM",
    "masked_lm": "MaskedLM",
    "ner": "TokenClassification",
    "qa": "QuestionAnswering",
}
"""Task to the end of its auto class."""
ENDS = (
    ("ForSequenceClassification", "SequenceClassification"),
    ("ForTokenClassification", "TokenClassification"),
    ("ForQuestionAnswering", "QuestionAnswering"),
    ("ForMaskedLM", "MaskedLM"),
    ("ForCausalLM", "CausalLM"),
    ("LMHeadModel", "CausalLM"),
    ("ForConditionalGeneration", "Seq2SeqLM"),
    ("MTModel", "Seq2SeqLM"),
    ("EncoderDecoderModel", "Seq2SeqLM"),
)
"""End of a model's class to the end of its auto class, which says more than the task: GPT-2 summarizes
too."""


def usage(record: RunRecord, folder: Path, repo: str) -> str:
    """Python that runs as it stands, once ``repo`` can be read."""
    head = head_of(record, folder)
    adapter = (folder / ADAPTER).is_file()
    model = f"{'AutoPeftModel' if adapter else 'AutoModel'}For{head}"
    needs = [
        f"from {'peft' if adapter else 'transformers'} import {model}",
        "from transformers import AutoTokenizer",
    ]
    rounding = _rounding(folder)
    if rounding:
        needs[-1] = "from transformers import AutoTokenizer, BitsAndBytesConfig"
    if not adapter:
        needs = [f"from transformers import {model}, AutoTokenizer"]
    lines = [
        "import torch",
        *needs,
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({repo!r})",
        *([rounding] if rounding else []),
        f"model = {model}.from_pretrained({repo!r}{_loaded_with(record, folder, head, adapter)})",
        "model.eval()",
        "",
        "with torch.inference_mode():",
        *(f"    {line}" if line else "" for line in _BODIES[head](record, folder)),
    ]
    return "\n".join(lines)


def head_of(record: RunRecord, folder: Path) -> str:
    """The end of the auto class that loads the model: SequenceClassification, CausalLM, Seq2SeqLM ..."""
    names = [
        str(record.model.get("architecture") or ""),
        *(read_json(folder / "config.json").get("architectures") or []),
    ]
    found = next((head for name in names for end, head in ENDS if name.endswith(end)), None)
    return found or HEADS.get(record.task, "CausalLM")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none or it cannot be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _loaded_with(record: RunRecord, folder: Path, head: str, adapter: bool) -> str:
    """The head of an adapter's base is made anew at loading: its size has to be said. And the adapter may be
    for rounded weights alone."""
    rounded = ", quantization_config=rounded" if _rounding(folder) else ""
    if not adapter or head not in ("SequenceClassification", "TokenClassification"):
        return rounded
    labels = (record.data.get("labels") or {}).get("classes")
    count = labels if isinstance(labels, int) else len(labels) if labels else 1
    return f", num_labels={count}{rounded}"


def _rounding(folder: Path) -> str:
    """The quantization that an adapter makes up for, without which its base would be another model; "" for
    others."""
    base = read_base_config(folder)
    if ROUNDED not in base:
        return ""
    asked, kept = base[QUANTIZATION], base[ROUNDED]["unquantized"]
    how = "load_in_8bit=True"
    if asked["bits"] == 4:
        double = asked["double_quant"] is not False
        how = (
            f"load_in_4bit=True, bnb_4bit_quant_type={asked['quant_type'] or 'nf4'!r},"
            f" bnb_4bit_use_double_quant={double}"
        )
    return (
        f"rounded = BitsAndBytesConfig({how}, llm_int8_skip_modules={kept})  # what the adapter makes up for"
    )


def _sample(record: RunRecord, *keys: str) -> str:
    """A short input of the first sample that has one, as a Python literal, or one that is made up."""
    for sample in record.samples:
        text = next((sample[key] for key in keys if isinstance(sample.get(key), str)), "")
        if text.strip():
            return repr(" ".join(text.split())[:MOST_CHARACTERS])
    return repr("Type a text here.")


def _settings(record: RunRecord) -> str:
    """Arguments of ``generate``, as the run was judged with."""
    given: Mapping[str, Any] = record.config.get("generation") or {}
    arguments: dict[str, Any] = {}
    if (given.get("num_beams") or 1) > 1:
        arguments["num_beams"] = given["num_beams"]
    if given.get("do_sample"):
        arguments |= {
            name: given[name] for name in ("do_sample", "temperature", "top_k", "top_p") if given.get(name)
        }
    return "".join(f", {name}={value!r}" for name, value in arguments.items())


def _causal_lm(record: RunRecord, folder: Path) -> list[str]:
    prompt = _sample(record, "prompt", "source", "text") if record.samples else repr(PROMPT)
    context = _context(record, folder)
    new = min((record.config.get("generation") or {}).get("max_new_tokens") or NEW_TOKENS, context // 2)
    frame = (record.data.get("training") or {}).get("prompt")
    if frame:  # of a task that turns one text into another
        prompt = f"{frame!r}.replace('{{source}}', {prompt})"
    start = "[inputs.input_ids.shape[1]:]" if frame else ""
    cut = f", truncation=True, max_length={context - new}" if context < SHORT_CONTEXT else ""
    return [
        f"inputs = tokenizer({prompt}, return_tensors='pt', return_token_type_ids=False{cut})",
        f"output = model.generate(**inputs, max_new_tokens={new}{_settings(record)})",
        f"print(tokenizer.decode(output[0]{start}, skip_special_tokens=True))",
    ]


def _context(record: RunRecord, folder: Path) -> int:
    """Most tokens that the model takes, prompt and continuation together; as good as unlimited where nothing
    says it."""
    made = read_json(folder / "config.json")
    told = [made.get("n_positions"), made.get("max_position_embeddings"), record.model.get("context")]
    return min((number for number in told if isinstance(number, int) and number > 1), default=10**9)


def _seq2seq(record: RunRecord, folder: Path) -> list[str]:
    prefix = str(record.config.get("source_prefix") or "")
    text = (
        f"{prefix!r} + {_sample(record, 'source', 'text')}" if prefix else _sample(record, "source", "text")
    )
    language = record.config.get("source_language")
    told = (
        [f"tokenizer.src_lang = {language!r}"]
        if language and read_json(folder / "tokenizer_config.json").get("src_lang")
        else []
    )
    most = (record.config.get("generation") or {}).get("max_new_tokens")
    longest = (
        f", max_new_tokens={most}" if most else ""
    )  # 0: generation_config.json says how long an output may become
    return [
        *told,
        f"inputs = tokenizer({text}, return_tensors='pt', return_token_type_ids=False)",
        f"output = model.generate(**inputs{longest}{_settings(record)})",
        "print(tokenizer.decode(output[0], skip_special_tokens=True))",
    ]


def _classification(record: RunRecord, folder: Path) -> list[str]:
    pair = f", {_sample(record, 'text_pair')}" if "text_pair" in (record.data.get("columns") or {}) else ""
    lines = [
        f"inputs = tokenizer({_sample(record, 'text')}{pair}, truncation=True, return_tensors='pt')",
        "logits = model(**inputs).logits[0]",
    ]
    kind = read_json(folder / "config.json").get("problem_type") or (record.data.get("labels") or {}).get(
        "problem_type"
    )
    if kind == "regression":
        return [*lines, "print(logits.item())"]
    chances = "logits.sigmoid()" if kind == "multi_label_classification" else "logits.softmax(-1)"
    return [
        *lines,
        f"for label, probability in zip(model.config.id2label.values(), {chances}.tolist()):",
        "    print(label, round(probability, 3))",
    ]


def _token_classification(record: RunRecord, folder: Path) -> list[str]:
    return [
        f"inputs = tokenizer({_sample(record, 'text', 'tokens')}, truncation=True, return_tensors='pt')",
        "labels = model(**inputs).logits[0].argmax(-1).tolist()",
        "for token, label in zip(tokenizer.convert_ids_to_tokens(inputs['input_ids'][0]), labels):",
        "    print(token, model.config.id2label[label])",
    ]


def _masked_lm(record: RunRecord, folder: Path) -> list[str]:
    return [
        "inputs = tokenizer(f'The house is {tokenizer.mask_token}.', return_tensors='pt')",
        "at = (inputs['input_ids'][0] == tokenizer.mask_token_id).nonzero()[0, 0]",
        "print(tokenizer.decode(model(**inputs).logits[0, at].topk(5).indices))",
    ]


def _question_answering(record: RunRecord, folder: Path) -> list[str]:
    return [
        (
            f"inputs = tokenizer({_sample(record, 'question')}, {_sample(record, 'context')},"
            " return_tensors='pt')"
        ),
        "output = model(**inputs)",
        "start, end = output.start_logits[0].argmax(), output.end_logits[0].argmax()",
        "print(tokenizer.decode(inputs['input_ids'][0, start : end + 1]))",
    ]


_BODIES = {
    "CausalLM": _causal_lm,
    "Seq2SeqLM": _seq2seq,
    "SequenceClassification": _classification,
    "TokenClassification": _token_classification,
    "MaskedLM": _masked_lm,
    "QuestionAnswering": _question_answering,
}
