"""A small random model that writes, started and killed by a test.

python writer.py save KIND FOLDER             saves it, with its tokenizer
python writer.py judge KIND FOLDER            judges it, as a recipe does at its end, with predictions in FOLDER
"""

import sys
from pathlib import Path

from datasets import Dataset
from small_writers import make

import hftk
from hftk.config import EvalConfig, GenerationSettings
from hftk.generation import generate
from hftk.launch import launched
from hftk.models.tokenizers import train_characters

TEXTS = [f"{word} {number}" * (1 + number % 3) for number in range(8) for word in ("Hund", "自行车", "бежит")]


def main(act: str, kind: str, folder: str) -> None:
    tokenizer = train_characters(TEXTS, 64, frame="t5")
    model = make(kind, vocabulary=len(tokenizer), end=tokenizer.eos_token_id)
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    if act == "save":
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return
    launched()
    generate.LOGITS_BYTES = 4 * len(tokenizer) * 2 * 4  # four rows of two beams at a time
    task = hftk.Summarization(
        hftk.SummarizationConfig(generation=GenerationSettings(max_new_tokens=8, num_beams=2))
    )
    rows = Dataset.from_dict({"source": TEXTS, "target": [text[::-1] for text in TEXTS]})
    hftk.evaluate(task, model, tokenizer, ("test", rows), EvalConfig(resamples=0), output=folder)


if __name__ == "__main__":
    Path(sys.argv[3]).mkdir(parents=True, exist_ok=True)
    main(*sys.argv[1:])
