"""The only room that knows ``transformers.Trainer``: fit, the exact loss, optimizers, checkpoints, resume."""
