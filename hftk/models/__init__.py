"""Config and data -> model and tokenizer: weights, sizes, heads, adapters, quantization, export."""
