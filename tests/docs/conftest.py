import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # markdown_blocks, small_hub
