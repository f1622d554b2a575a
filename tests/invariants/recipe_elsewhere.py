"""Started by ``accelerate launch``: the recipe as it is, but the second process stands in another folder
(argument 1)."""

import os
import runpy
import sys
from pathlib import Path

RECIPE = Path(__file__).parents[2] / "recipes/gpt2_clm.py"

if os.environ["RANK"] != "0":
    os.chdir(sys.argv[1])
sys.argv = [str(RECIPE), *sys.argv[2:]]
runpy.run_path(str(RECIPE), run_name="__main__")
