"""Fine-tune T5 (or BART, Pegasus, mT5 ..., two BERTs, or a prompted GPT-2 or Llama) for summarization.

    accelerate launch recipes/t5_summarization.py
    accelerate launch recipes/t5_summarization.py --data.path articles.jsonl --model.name google-t5/t5-small --source_prefix "summarize: "
    accelerate launch recipes/t5_summarization.py --help

Reads   rows with a document and its summary: a .jsonl, .csv or .parquet file, a folder of them, or a Hub data set.
Writes  weights, tokenizer, config.yaml, record.json, predictions.jsonl and report.html in --output.
"""  # noqa: E501

import hftk

TASK = hftk.Summarization
CONFIG = hftk.SummarizationConfig(
    data=hftk.DataConfig(sample="docstring_summaries", validation_fraction=0.05, test_fraction=0.05),
    model=hftk.ModelConfig(size="tiny", vocab_size=4096),
    train=hftk.TrainConfig(
        epochs=3,
        per_device_batch_size=32,
        global_batch_size=32,
        max_length=128,
        learning_rate=2e-3,
        schedule="linear",
        warmup=0.1,
        label_smoothing=0.1,
    ),
    generation=hftk.GenerationSettings(max_new_tokens=0),
    language="en",
    output="out/t5_summarization",
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
