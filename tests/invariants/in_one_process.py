"""Started by a test, and killed by it: trains, and hangs in the middle of its second checkpoint."""

import importlib.util
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from hftk import checkpoints  # noqa: E402

spec = importlib.util.spec_from_file_location("test_resume", HERE / "test_resume.py")
test_resume = importlib.util.module_from_spec(spec)
spec.loader.exec_module(test_resume)
seal = checkpoints.seal


def hang(staged, final, facts):
    if final.name == "checkpoint-4":
        (staged / "left over").touch()
        print("half saved", flush=True)
        time.sleep(600)
    seal(staged, final, facts)


checkpoints.seal = hang
test_resume.go(test_resume.config_of("adamw", sys.argv[1], save_steps=2))
