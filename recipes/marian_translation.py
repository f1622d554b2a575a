"""Train or fine-tune Marian (or M2M100, NLLB, mBART ...) for translation.

    accelerate launch recipes/marian_translation.py
    accelerate launch recipes/marian_translation.py --data.path pairs.jsonl --data.columns.source en --data.columns.target de --source_language en --target_language de --model.name Helsinki-NLP/opus-mt-en-de
    accelerate launch recipes/marian_translation.py --help

Reads   rows with a text in two languages: a .jsonl, .csv or .parquet file, a folder of them, or a Hub data set.
Writes  weights, tokenizer, config.yaml, record.json, predictions.jsonl and report.html in --output.
"""  # noqa: E501

import hftk

TASK = hftk.Translation
CONFIG = hftk.TranslationConfig(
    data=hftk.DataConfig(sample="cldr_en_de", validation_fraction=0.05, test_fraction=0.05),
    model=hftk.ModelConfig(size="tiny", vocab_size=2048),
    train=hftk.TrainConfig(
        epochs=8,
        per_device_batch_size=64,
        global_batch_size=64,
        learning_rate=2e-3,
        schedule="inverse_sqrt",
        warmup=0.1,
        label_smoothing=0.1,
    ),
    generation=hftk.GenerationSettings(max_new_tokens=0),
    source_language="en",
    target_language="de",
    output="out/marian_translation",
)


def main(config):
    task = TASK(config)
    max_length = hftk.check(config, task)  # mistakes that show before any data is read
    splits = hftk.load_splits(config.data, task)  # cleaned, de-duplicated, disjoint
    model, tokenizer = hftk.load_model(config.model, task, splits, seed=config.train.seed)
    baselines = hftk.evaluate_baselines(task, tokenizer, splits, config.eval, max_length=max_length)
    before = hftk.evaluate(task, model, tokenizer, splits.held_out, config.eval, when="before")
    trained = hftk.fit(task, model, tokenizer, splits, config, on_checkpoint=hftk.push_checkpoints(config))
    after = hftk.evaluate(task, trained.model, tokenizer, splits.held_out, config.eval, output=config.output)
    result = hftk.record(config, splits, trained, before, after, baselines)
    hftk.write_report(result, config.output)
    hftk.track(trained, result.scores)
    hftk.publish(result, config)
    return result


if __name__ == "__main__":
    hftk.run(main, CONFIG)
