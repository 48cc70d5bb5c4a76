"""The compiled kernels with every index checked, on random problems, in a process of its own.

    python tests/fuzz/bounds.py --seconds 3600 --seed 0

The kernels are compiled anew, into a cache of their own, which takes some minutes the first time. The problems are
those of ``problems.py`` by numba, and batches of sizes at which an index goes wrong for best paths, posteriors,
entropies and risks: no sample, no frame, no label, one of each, lengths below the padded sizes. Reported are an index
out of bounds and any other error that is not the library's. The same seed makes the same problems.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CACHE = Path(tempfile.gettempdir()) / "pathsum-bounds"


def checked(arguments: list[str]) -> int:
    """Run this file again where numba checks bounds from the first compilation on."""
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(CACHE)}
    return subprocess.run([sys.executable, __file__, "--here", *arguments], env=environment, check=False).returncode


def results(seed: int, index: int) -> tuple[str, Any]:
    """A function that has other kernels than a loss, its arguments described, and a call."""
    import numpy as np
    import torch

    import pathsum.torch

    rng = np.random.default_rng([seed, index, 1])
    kinds = ("align", "viterbi", "posteriors", "entropy", "expected_risk")
    names = [name for name in pathsum.torch.__all__ if any(kind in name for kind in kinds)]
    name = str(rng.choice(names))
    function = getattr(pathsum.torch, name)
    parameters = inspect.signature(function).parameters
    count, frames, labels, classes = (
        int(rng.choice(sizes)) for sizes in ([0, 1, 3], [0, 1, 2, 9, 70], [0, 1, 5], [2, 7])
    )
    dtype = [torch.float32, torch.float64][rng.integers(2)]

    def tensor(*shape: int) -> Any:
        return torch.from_numpy(rng.normal(size=shape)).to(dtype)

    def lengths(most: int) -> Any:
        return torch.from_numpy(rng.integers(0, most + 1, size=count))

    axes = (count, frames, labels + 1, classes) if "rnnt" in name else (count, frames, classes)
    given: dict[str, Any] = {
        "targets": torch.from_numpy(rng.integers(1, classes, size=(count, labels))),
        "logit_lengths": lengths(frames),
        "input_lengths": lengths(frames),
        "target_lengths": lengths(labels),
        "transitions": tensor(classes, classes),
        "costs": tensor(*axes[:-1], 2 if "rnnt" in name else classes),
        "blank": 0,
        "batch_first": True,
    }
    given |= dict.fromkeys(("log_probs", "logits", "inputs"), tensor(*axes).requires_grad_())
    arguments = {key: value for key, value in given.items() if key in parameters}
    described = f"{name} N={count} T={frames} U={labels} C={classes} {dtype} index {index}"

    def call() -> None:
        found = function(**arguments)
        if isinstance(found, torch.Tensor) and found.requires_grad:
            found.sum().backward()

    return described, call


def fuzz(seed: int, first: int) -> Iterator[str]:
    """What went wrong, of one problem after another; an empty text where nothing did."""
    import problems

    import pathsum.errors

    for index in itertools.count(first):
        given = problems.problem(seed, index)
        if given.name.endswith("numba"):
            try:
                problems.check(given, index)
                yield ""
            except Exception as error:  # to report, and to go on with the next
                yield f"problem {index}: {given.name}: {type(error).__name__}: {error}"
        described, call = results(seed, index)
        try:
            call()
            yield ""
        except (pathsum.errors.InvalidValueError, pathsum.errors.InvalidTypeError):
            yield ""
        except Exception as error:
            yield f"{described}: {type(error).__name__}: {error}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the problem to begin with")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.here:
        return checked(sys.argv[1:])
    end, count, failed = time.monotonic() + options.seconds, 0, 0
    for wrong in fuzz(options.seed, options.first):
        count += 1
        if wrong:
            failed += 1
            print(wrong, flush=True)
        if time.monotonic() > end:
            break
    print(f"{count} calls with bounds checked, seed {options.seed}: {failed} wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
