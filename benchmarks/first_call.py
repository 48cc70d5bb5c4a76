"""CPU seconds of the first call of losses, forward and backward: kernels compiled, then read from disk.

    python benchmarks/first_call.py [loss ...]

Each is timed on one thread in a fresh process, with a cache of its own that is empty at first. Imports are apart: those
of pathsum and of numba. Unlike ``pathsum bench first_call``, which times what a user waits, this may share the machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from pathsum.warmup import CALLS

CHILD = """
import sys, time
import torch
torch.set_num_threads(1)
torch.zeros(1, requires_grad=True).sum().backward()
begin = time.process_time()
import numba, pathsum.torch
from pathsum.warmup import call
imported = time.process_time()
call(sys.argv[1], "float32", second=False)
print(imported - begin, time.process_time() - imported)
"""


def main(names: list[str]) -> None:
    print("| loss | imports | compiled | read |\n|---|---|---|---|")
    for name in names or CALLS:
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"NUMBA_CACHE_DIR": folder, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
            taken = []
            for _ in range(2):
                command = [sys.executable, "-c", CHILD, name]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                taken.append([float(word) for word in done.stdout.split()])
        (_, cold), (imports, warm) = taken
        print(f"| `{name}` | {imports:.2f} | {cold:.1f} | {warm:.2f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
