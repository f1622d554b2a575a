"""Text from prompts: batched, sorted by length, one output per prompt in data order."""
