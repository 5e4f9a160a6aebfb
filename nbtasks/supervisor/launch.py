"""Run one of our modules in a fresh interpreter: `python -P launch.py nbtasks.worker ARGUMENT...`.

Nearly `python -m`, with two differences that matter in a notebook's folder. The folder itself stays
off `sys.path` while we start, so that a `queue.py` or `select.py` lying there does not become ours.
And nbtasks is found where the parent found it, installed or not, without a word in the environment
that the user's own processes would inherit.
"""

import os
import runpy
import sys

if __name__ == "__main__":
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if root not in sys.path:
        sys.path.insert(0, root)
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
