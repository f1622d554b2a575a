"""Started by torchrun with two processes: each notes what it encoded itself, and whether it got the same as
the others."""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import test_features as toys

from hftk import features
from hftk.launch import launched, run
from hftk.tasks.causal_lm import CausalLM, CausalLMConfig

encoded = []
plain = CausalLM.encode


def main(config):
    tokenizer = toys.train_byte_bpe(toys.TEXTS, 280)
    task = CausalLM(config)
    made = {}

    def encode(name, rows, least, seconds=0.0):
        def slowly(self, *args, **asked):
            encoded.append(name)
            time.sleep(seconds)
            return plain(self, *args, **asked)

        CausalLM.encode = slowly
        features.LEAST_BYTES = least
        made[name] = features.encode(task, rows, tokenizer, **toys.CALL)
        CausalLM.encode = plain
        made[name, "plain"] = task.encode(rows, tokenizer, **toys.CALL)
        return made[name].facts.get("cache")

    small, large = toys.rows_of(), toys.rows_of(toys.TEXTS * 3)
    cache = [
        encode("slow", small, 2**20, 11.0),
        encode("small", small, 2**20),
        encode("large", large, 0),
        encode("large again", large, 0),
    ]
    found = {
        "encoded": encoded,
        "cache": cache,
        "equal": all(
            toys.equal(made[n], made[n, "plain"]) for n in ("slow", "small", "large", "large again")
        ),
    }
    Path(f"rank{launched().rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    run(main, CausalLMConfig())
