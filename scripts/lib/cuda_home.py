"""Print the folder of the CUDA toolkit, or why there is none."""

import runpy
import sys
from pathlib import Path

toolkit = runpy.run_path(str(Path(__file__).parents[2] / "fairseq_fwm" / "cuda_toolkit.py"))
try:
    print(toolkit["cuda_home"]())
except toolkit["NoToolkit"] as reason:
    sys.exit(str(reason))
