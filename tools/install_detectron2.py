#!/usr/bin/env python
"""Install Detectron2 0.6 for today's torch, numpy and Pillow; ``--help`` says what it does.

The code is in ``dev/env/install_detectron2.py``, beside the rest of what builds the environment.
"""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    program = Path(__file__).resolve().parents[1] / "dev" / "env" / "install_detectron2.py"
    sys.path.insert(0, str(program.parent))
    runpy.run_path(str(program), run_name="__main__")
