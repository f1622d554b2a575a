"""Fine-tune BERT for text classification: one label, several labels or a number, for texts and pairs of texts.

    accelerate launch recipes/bert_classification.py
    accelerate launch recipes/bert_classification.py --data.path reviews.csv --model.name google-bert/bert-base-uncased
    accelerate launch recipes/bert_classification.py --help

Reads   rows with a text (or two) and a label: a .jsonl, .csv or .parquet file, a folder of them, or a Hub data set.
Writes  weights, tokenizer, config.yaml, record.json, predictions.jsonl and report.html in --output.
Expect  with no argument, about a minute of training on two CPU cores, and on the test split an accuracy of 0.824, where TF-IDF
        with logistic regression has 0.871: so little text is not enough to train BERT from nothing (results/bert_classification.json).
"""  # noqa: E501

import hftk

TASK = hftk.Classification
CONFIG = hftk.ClassificationConfig(
    data=hftk.DataConfig(sample="python_modules", validation_fraction=0.1, test_fraction=0.15),
    model=hftk.ModelConfig(size="tiny", vocab_size=4096),
    train=hftk.TrainConfig(
        epochs=8,
        per_device_batch_size=32,
        global_batch_size=32,
        max_length=128,
        learning_rate=2e-3,
        schedule="linear",
        warmup=0.1,
        weight_decay=0.01,
        restore_best=True,
    ),
    output="out/bert_classification",
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
