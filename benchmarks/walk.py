"""The walk of a call through src/pathsum: which files it enters, from the public function to the kernels and back.

    PYTHONPATH=src python benchmarks/walk.py [loss ...] [--steps]

A *stay* is a run of calls into one file with no call into another between; returning is no call. The kernels of one
implementation on one framework are one room, since they are made of one another: their files are counted apart. Forward
and backward are walked on the smallest input, by kernels that are not compiled, so that every call is seen; a walk goes
before it that is not looked at, since it imports.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

os.environ["NUMBA_DISABLE_JIT"] = "1"

import torch

import pathsum
from pathsum import torch as losses

ROOT = Path(pathsum.__file__).parent
# Functions that are named of a stay.
MOST = 8


class Step(NamedTuple):
    """A call: the file of the function that is called, and its name."""

    file: str
    function: str

    @property
    def room(self) -> str:
        """The file, or the folder of kernels that it is in."""
        parts = Path(self.file).parts
        return "/".join(parts[:2]) if parts[0] == "kernels" and len(parts) > 2 else self.file


class Walk(NamedTuple):
    """The steps of forward and those of backward."""

    forward: list[Step]
    backward: list[Step]

    @property
    def rooms(self) -> set[str]:
        return {step.room for step in self.forward + self.backward}

    @property
    def files(self) -> set[str]:
        return {step.file for step in self.forward + self.backward}

    @property
    def stays(self) -> int:
        return sum(len(list(groupby(steps, lambda step: step.room))) for steps in self)


def watched(function: Callable[[], Any]) -> tuple[Any, list[Step]]:
    """What a function returns, and its steps through the package."""
    steps: list[Step] = []

    def see(frame: Any, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT):
            steps.append(Step(path.relative_to(ROOT).as_posix(), frame.f_code.co_name))

    sys.setprofile(see)
    try:
        return function(), steps
    finally:
        sys.setprofile(None)


def scores(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, requires_grad=True)


def integers(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def ctc() -> torch.Tensor:
    return losses.ctc_loss(scores(4, 1, 3), integers(1)[None], integers(4), integers(1))


def rnnt() -> torch.Tensor:
    return losses.rnnt_loss(scores(1, 2, 2, 3), integers(1)[None], integers(2), integers(1))


def joint() -> torch.Tensor:
    operands = scores(1, 2, 3), scores(1, 2, 3), scores(4, 3)
    return losses.rnnt_joint_loss(*operands, None, integers(1)[None], integers(2), integers(1))


def tdt() -> torch.Tensor:
    heads = scores(1, 2, 2, 3), scores(1, 2, 2, 3)
    return losses.tdt_loss(*heads, integers(1)[None], integers(2), integers(1), durations=[0, 1, 2])


def asg() -> torch.Tensor:
    return losses.asg_loss(scores(4, 1, 3), integers(1, 2)[None], scores(3, 3), integers(4), integers(2))


LOSSES = {loss.__name__: loss for loss in (ctc, rnnt, joint, tdt, asg)}


def walk(loss: Callable[[], torch.Tensor]) -> Walk:
    loss().backward()
    result, forward = watched(loss)
    return Walk(forward, watched(result.backward)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description="files and stays of a call, forward and backward")
    parser.add_argument("losses", nargs="*", metavar="loss", help=f"of {', '.join(LOSSES)}; all without any")
    parser.add_argument("--steps", action="store_true", help="print every stay and the functions called in it")
    arguments = parser.parse_args()
    if unknown := set(arguments.losses) - set(LOSSES):
        parser.error(f"no such loss: {', '.join(unknown)}")
    torch.set_num_threads(1)
    for name in arguments.losses or LOSSES:
        taken = walk(LOSSES[name])
        inside = len(taken.files) - len(taken.rooms) + 1
        print(f"{name}: {len(taken.rooms)} files, the {inside} of the kernels as one; {taken.stays} stays")
        for way, steps in taken._asdict().items() if arguments.steps else ():
            print(f"  {way}")
            for room, inside in groupby(steps, lambda step: step.room):
                called = list(dict.fromkeys(step.function for step in inside))
                print(f"    {room}: {', '.join(called[:MOST])}{', ...' if len(called) > MOST else ''}")


if __name__ == "__main__":
    main()
