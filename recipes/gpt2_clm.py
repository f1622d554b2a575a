"""Fine-tune GPT-2 as a causal language model.

    accelerate launch recipes/gpt2_clm.py
    accelerate launch recipes/gpt2_clm.py --data.path my_texts/ --model.name openai-community/gpt2
    accelerate launch recipes/gpt2_clm.py --help

Reads   documents: a .txt, .jsonl, .csv or .parquet file, a folder of them, or a Hub data set with a column of text.
Writes  weights, tokenizer, config.yaml, record.json, predictions.jsonl and report.html in --output.
Expect  with no argument, about two minutes of training on two CPU cores, and on the test split a perplexity of 75.4, where a bigram
        model has 109 (results/quickstart.json).
"""  # noqa: E501

import hftk

TASK = hftk.CausalLM
CONFIG = hftk.CausalLMConfig(
    data=hftk.DataConfig(sample="python_docs"),
    model=hftk.ModelConfig(size="tiny", vocab_size=2048),
    train=hftk.TrainConfig(
        epochs=8,
        per_device_batch_size=16,
        global_batch_size=16,
        learning_rate=3e-3,
        schedule="cosine",
        warmup=0.05,
        weight_decay=0.1,
        adam_beta2=0.99,
    ),
    generation=hftk.GenerationSettings(do_sample=True, temperature=0.8, top_k=50),
    output="out/gpt2_clm",
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
