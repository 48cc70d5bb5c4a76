"""A few problems of the fuzzer's, by number, the same everywhere. ``tests/fuzz/problems.py`` makes many more."""

import sys
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
import problems
import torch

pytestmark = pytest.mark.filterwarnings("ignore:asg_loss. the target")


@pytest.mark.parametrize("maker", ["chain", "asg", "transducer", "joiner"])
def test_random_problems_have_the_answer_of_their_paths(maker):
    found = [
        f"{index} {given.name}: {wrong}" for index, given, wrong in islice(problems.fuzz(2026, only=maker), 40) if wrong
    ]
    assert not found


def test_the_same_seed_makes_the_same_problems():
    first, again, other = ([problems.problem(seed, k).name for k in range(30)] for seed in (3, 3, 4))
    assert first == again != other


def test_a_wrong_answer_is_seen():
    given = next(p for p in (problems.problem(0, k, "chain") for k in range(50)) if p.inputs[0].dtype == torch.float64)
    assert problems.check(given) == ""
    assert "losses" in problems.check(given._replace(loss=lambda x: given.loss(x) + 1e-6))
    assert "gradient" in problems.check(
        given._replace(loss=lambda x: given.loss(x) + (x - x.detach()).nan_to_num().sum())
    )
