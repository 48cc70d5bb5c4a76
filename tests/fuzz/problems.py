"""Random tiny problems beside the enumeration of their paths: losses, gradients and Hessian-vector products.

    python tests/fuzz/problems.py --seconds 60 --seed 0

A problem is a loss of pathsum.torch, its options, a ragged batch with NaN in its padding, a dtype, an implementation.
What is right comes from the definition alone, path by path, in float64 on the very values that the loss was given. The
same seed makes the same problems; ``--first`` begins with one that was reported.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

import variants
from pathsum.torch import Joiner, asg_loss, ctc_loss, rnnt_joint_loss, rnnt_loss_from_joint, simple_ctc_loss

IMPLEMENTATIONS = ("numba", "reference")
DTYPES = (torch.float64, torch.float64, torch.float32, torch.bfloat16, torch.float16)
BLANK, CLASSES = variants.BLANK, variants.NUM_CLASSES


class Problem(NamedTuple):
    """A question and its answer.

    Attributes:
        name: The loss and all that was chosen at random.
        inputs: Tensors of the dtype that is tried.
        loss: Maps them to losses (N,).
        oracle: Maps them, in float64, to a loss for each sample, ``None`` where it has no path.
        clamp: The bound of a loss's own gradient, 0 for none.
        twice: Whether there are second derivatives.
    """

    name: str
    inputs: list[Tensor]
    loss: Callable[..., Tensor]
    oracle: Callable[..., list[Tensor | None]]
    clamp: float = 0.0
    twice: bool = True


class Batch(NamedTuple):
    targets: Any
    frames: list[int]
    labels: list[list[int]]
    num_frames: int
    num_labels: int

    @property
    def lengths(self) -> list[int]:
        return [len(labels) for labels in self.labels]


def batch(rng: np.random.Generator, classes: list[int], most_frames: int, most_labels: int) -> Batch:
    """Ragged samples, those without frames or labels among them; padded further than any, or concatenated."""
    count = int(rng.integers(1, 4))
    frames = [int(rng.integers(0 if rng.random() < 0.1 else 1, most_frames + 1)) for _ in range(count)]
    labels = [[int(rng.choice(classes)) for _ in range(rng.integers(0, most_labels + 1))] for _ in range(count)]
    num_frames, num_labels = max(frames) + int(rng.integers(0, 2)), max(map(len, labels)) + int(rng.integers(0, 2))
    if rng.random() < 0.3:
        targets = torch.tensor([label for own in labels for label in own], dtype=torch.int64)
    else:
        targets = torch.full((count, num_labels), -7)
        for n, own in enumerate(labels):
            targets[n, : len(own)] = torch.tensor(own, dtype=torch.int64)
    return Batch(targets, frames, labels, num_frames, num_labels)


def scores(rng: np.random.Generator, *shape: int, masks: bool = True) -> Tensor:
    """Scores of some spread, some of them impossible."""
    values = torch.from_numpy(rng.normal(size=shape) * rng.choice([0.3, 2.0, 20.0]))
    if masks and rng.random() < 0.3:
        values[torch.from_numpy(rng.random(shape) < 0.1)] = -torch.inf
    return values


def strided(rng: np.random.Generator, values: Tensor) -> Tensor:
    """The same values, their axes in memory in another order."""
    order = [int(axis) for axis in rng.permutation(values.ndim)]
    return values.permute(order).contiguous().permute([order.index(axis) for axis in range(values.ndim)])


def log_sum(paths: list[Tensor]) -> Tensor | None:
    """Minus the log-sum of paths' scores; ``None`` where none is possible."""
    possible = [path for path in paths if path > -torch.inf]
    return -torch.stack(possible).logsumexp(0) if possible else None


def normalised(rows: Tensor) -> Tensor:
    """The log-softmax, in which a row of nothing but -inf stays so."""
    empty = (rows == -torch.inf).all(-1, keepdim=True)
    return torch.where(empty, -torch.inf, torch.where(empty, 0.0, rows).log_softmax(-1))


def collapse(path: tuple[int, ...], merged: bool) -> list[int]:
    """What a labelling of the frames reads as, the blank being 0."""
    kept = [label for label, _ in itertools.groupby(path)] if merged else path
    return [label for label in kept if label != 0]


def chain(rng: np.random.Generator, impl: str, dtype: torch.dtype) -> Problem:
    name = str(rng.choice(["ctc", "simple_ctc"]))
    fused, zero_infinity = (bool(rng.random() < 0.5) for _ in range(2))
    own = batch(rng, [1, 2], 5, 3)
    values = scores(rng, own.num_frames, len(own.frames), 3).to(dtype)
    if not fused:
        values = normalised(values.double()).to(dtype)
    for n, frames in enumerate(own.frames):
        values[frames:, n] = torch.nan
    function = {"ctc": ctc_loss, "simple_ctc": simple_ctc_loss}[name]
    options = {"reduction": "none", "fused_log_softmax": fused, "zero_infinity": zero_infinity, "impl": impl}

    def oracle(given: Tensor) -> list[Tensor | None]:
        found = []
        for n, (frames, target) in enumerate(zip(own.frames, own.labels, strict=True)):
            rows = normalised(given[:frames, n]) if fused else given[:frames, n]
            paths = [
                rows[torch.arange(frames), list(path)].sum()
                for path in itertools.product(range(3), repeat=frames)
                if collapse(path, name == "ctc") == target
            ]
            found.append(log_sum(paths))
        return found

    described = f"{name} {own.frames} {own.labels} fused={fused} zero_infinity={zero_infinity}"
    arguments = (own.targets, own.frames, own.lengths)
    return Problem(described, [strided(rng, values)], lambda x: function(x, *arguments, **options), oracle)


def asg(rng: np.random.Generator, impl: str, dtype: torch.dtype) -> Problem:
    own = batch(rng, [0, 1, 2], 5, 3)
    values, table = scores(rng, own.num_frames, len(own.frames), 3), scores(rng, 3, 3, masks=False)
    inputs = [values, table, *([scores(rng, 3, masks=False) for _ in range(2)] if rng.random() < 0.4 else [])]
    inputs = [tensor.to(dtype) for tensor in inputs]
    for n, frames in enumerate(own.frames):
        inputs[0][frames:, n] = torch.nan

    def loss(values: Tensor, table: Tensor, *ends: Tensor) -> Tensor:
        named = dict(zip(("start_scores", "final_scores"), ends, strict=False))
        return asg_loss(values, own.targets, table, own.frames, own.lengths, "none", impl=impl, **named)

    def oracle(values: Tensor, table: Tensor, *ends: Tensor) -> list[Tensor | None]:
        found = []
        for n, (frames, target) in enumerate(zip(own.frames, own.labels, strict=True)):

            def score(path: tuple[int, ...], n: int = n, frames: int = frames) -> Tensor:
                total = values[:frames, n][torch.arange(frames), list(path)].sum()
                total = total + table[list(path[1:]), list(path[:-1])].sum()
                return total + ends[0][path[0]] + ends[1][path[-1]] if ends and frames else total

            # Cuts between frames, at which the next label begins.
            cuts = itertools.combinations(range(1, frames), len(target) - 1) if target and frames else ()
            stretched = [
                tuple(target[sum(cut <= t for cut in own_cuts)] for t in range(frames)) for own_cuts in cuts
            ]  # fmt: skip
            if not target and not frames:
                stretched = [()]
            of_target = log_sum([score(path) for path in stretched])
            of_all = log_sum([score(path) for path in itertools.product(range(3), repeat=frames)])
            found.append(None if of_target is None or of_all is None else of_target - of_all)
        return found

    return Problem(f"asg {own.frames} {own.labels} ends={len(inputs) > 2}", inputs, loss, oracle)


def variant(rng: np.random.Generator) -> tuple[str, variants.Variant]:
    """A transducer's loss with its options."""
    kind = str(rng.choice(["rnnt", "rnnt", "band", "tdt", "multi_blank", "wildcard"]))
    sigma, final = float(rng.choice([0.0, 1 / 3])), str(rng.choice(["blank", "any"]))
    options: dict[str, Any] = {}
    if kind in ("rnnt", "band"):
        options["rnnt_type"] = str(rng.choice(["regular", "modified", "one_sym_per_frame", "constrained"]))
        options["delay_penalty"], options["hat"] = float(rng.choice([0.0, 1 / 3, -0.7])), bool(rng.random() < 0.3)
        if kind == "band":
            options["left"], options["right"] = (int(rng.integers(0, 3)) for _ in range(2))
        return f"{kind} {options}", variants.rnnt(**options)
    if kind == "tdt":
        durations = tuple(int(d) for d in rng.permutation([0, 1, 2, 3, 9])[: rng.integers(1, 4)])
        durations = durations if max(durations) else (0, 1)
        return f"tdt {durations} {final} {sigma}", variants.tdt(durations, final, sigma)
    if kind == "multi_blank":
        durations = tuple(int(d) for d in rng.choice([1, 2, 3, 2**40], 2))
        return f"multi_blank {durations} {sigma}", variants.multi_blank(durations, (-1, -2), sigma)
    return f"wildcard {final} {sigma}", variants.wildcard(final, -sigma)


def transducer(rng: np.random.Generator, impl: str, dtype: torch.dtype) -> Problem:
    described, chosen = variant(rng)
    own = batch(rng, [0, 2, 3], 4, 2)
    if described.startswith("band"):
        # Its alignment has a frame for every label, spread over the padded width.
        frames, width = [max(t, 1) for t in own.frames], int(rng.integers(0, 3))
        labels = [[int(rng.choice([0, 2, 3])) for _ in range(width)] for _ in frames]
        targets = torch.tensor(labels, dtype=torch.int64).reshape(len(frames), width)
        own = Batch(targets, frames, labels, max(own.num_frames, 1), width)
    padded = bool(rng.random() < 0.5)
    further = {"fastemit_lambda": float(rng.choice([0.0, 0.0, 1 / 3])), "clamp": float(rng.choice([-1.0, -1.0, 0.05]))}
    shape = (len(own.frames), own.num_frames, own.num_labels + 1)
    grids = [scores(rng, *shape, size, masks=False).to(dtype) for size in chosen.heads]
    blocks = [(n, t, len(labels) + 1) for n, (t, labels) in enumerate(zip(own.frames, own.labels, strict=True))]
    if padded:
        inputs = [torch.full_like(grid, torch.nan) for grid in grids]
        for into, grid in zip(inputs, grids, strict=True):
            for n, t, width in blocks:
                into[n, :t, :width] = grid[n, :t, :width]
        inputs = [strided(rng, tensor) for tensor in inputs]
    else:
        inputs = [torch.cat([grid[n, :t, :width].flatten(0, 1) for n, t, width in blocks]) for grid in grids]

    def loss(*heads: Tensor) -> Tensor:
        return chosen.loss(heads, own.targets, own.frames, own.lengths, reduction="none", impl=impl, **further)

    def oracle(*heads: Tensor) -> list[Tensor | None]:
        found, first = [], 0
        for n, t, width in blocks:
            if padded:
                parts = [head[n, :t, :width] for head in heads]
            else:
                parts = [head[first : first + t * width].unflatten(0, (t, width)) for head in heads]
            first += t * width
            arcs = chosen.arcs(parts, own.labels[n], t)
            found.append(variants.enumerated(arcs, t, width - 1, further["fastemit_lambda"]))
        return found

    once = further["clamp"] > 0 or further["fastemit_lambda"] > 0
    described = f"{described} {own.frames} {own.labels} padded={padded} {further}"
    return Problem(described, inputs, loss, oracle, max(further["clamp"], 0.0), not once)


def joiner(rng: np.random.Generator, impl: str, dtype: torch.dtype) -> Problem:
    """The fused joiner, a variant's joiner, or one that is a function."""
    dtype = torch.float64 if dtype in (torch.bfloat16, torch.float16) else dtype
    rnnt_type = str(rng.choice(["regular", "modified", "one_sym_per_frame", "constrained"]))
    kind = str(rng.choice(["fused", "from_joint", "wildcard"]))
    chosen = variants.wildcard("any", -0.25) if kind == "wildcard" else variants.rnnt(rnnt_type, 1 / 3)
    own = batch(rng, [0, 2, 3], 4, 2)
    inputs = [
        scores(rng, len(own.frames), own.num_frames, 3, masks=False),
        scores(rng, len(own.frames), own.num_labels + 1, 3, masks=False),
        scores(rng, CLASSES, 3, masks=False),
        scores(rng, CLASSES, masks=False),
    ]
    inputs = [tensor.to(dtype) for tensor in inputs]
    integers = (own.targets, own.frames, own.lengths)

    def loss(*operands: Tensor) -> Tensor:
        options = {"reduction": "none", "impl": impl}
        if kind == "wildcard":
            return chosen.loss([Joiner(*operands, gate=0.0)], *integers, **options)
        options |= {"rnnt_type": rnnt_type, "delay_penalty": 1 / 3}
        if kind == "fused":
            return rnnt_joint_loss(*operands, *integers, BLANK, gate=0.0, tile_memory=1, **options)
        encoder, predictor, weight, bias = operands
        return rnnt_loss_from_joint(
            lambda e, p: torch.tanh(e + p) @ weight.T + bias, encoder, predictor, *integers, BLANK, rows_per_tile=5,
            **options,
        )  # fmt: skip

    def oracle(encoder: Tensor, predictor: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor | None]:
        logits = torch.tanh(encoder[:, :, None] + predictor[:, None]) @ weight.T + bias
        return [
            variants.enumerated(chosen.arcs([logits[n, :t]], labels, t), t, len(labels))
            for n, (t, labels) in enumerate(zip(own.frames, own.labels, strict=True))
        ]

    twice = kind != "wildcard" or impl == "reference"
    return Problem(f"joiner {kind} {rnnt_type} {own.frames} {own.labels}", inputs, loss, oracle, twice=twice)


MAKERS = (chain, chain, asg, transducer, transducer, joiner)


def problem(seed: int, index: int, only: str = "") -> Problem:
    rng = np.random.default_rng([seed, index])
    impl, dtype = str(rng.choice(IMPLEMENTATIONS)), DTYPES[rng.integers(len(DTYPES))]
    makers = [maker for maker in MAKERS if only in maker.__name__]
    made = makers[rng.integers(len(makers))](rng, impl, dtype)
    return made._replace(name=f"{made.name} {str(made.inputs[0].dtype).removeprefix('torch.')} {impl}")


class Answer(NamedTuple):
    """Losses (N,), gradients of the inputs, and their slopes along tangents; ``None`` where there are none."""

    losses: Tensor
    gradients: list[Tensor]
    products: list[Tensor] | None


def differentiate(losses: Tensor, leaves: list[Tensor], upstream: Tensor, tangents: list[Tensor] | None) -> Answer:
    options = {"allow_unused": True, "materialize_grads": True}
    if not losses.requires_grad:
        zeros = [torch.zeros_like(leaf) for leaf in leaves]
        return Answer(losses, zeros, None if tangents is None else zeros)
    total = (losses * upstream.to(losses.dtype)).sum()
    gradients = torch.autograd.grad(total, leaves, create_graph=tangents is not None, **options)
    if tangents is None:
        return Answer(losses.detach(), list(gradients), None)
    slope = sum((gradient * along).sum() for gradient, along in zip(gradients, tangents, strict=True))
    if not slope.requires_grad:
        return Answer(losses.detach(), list(gradients), [torch.zeros_like(leaf) for leaf in leaves])
    products = torch.autograd.grad(slope, leaves, **options)
    return Answer(losses.detach(), [gradient.detach() for gradient in gradients], list(products))


def expected_of(given: Problem, upstream: Tensor, tangents: list[Tensor] | None) -> Answer:
    """What is right. Samples without a path have no share in the gradient; NaN in padding is not in it."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in given.inputs]
    found = given.oracle(*leaves)
    losses = torch.stack([torch.tensor(torch.inf).double() if loss is None else loss for loss in found])
    zero = leaves[0].new_zeros(())
    defined = torch.stack([zero if loss is None else loss for loss in found])
    if given.clamp:
        gradients = [torch.zeros_like(leaf) for leaf in leaves]
        for n, loss in enumerate(found):
            if loss is not None and loss.requires_grad:
                own = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
                for total, gradient in zip(gradients, own, strict=True):
                    total += upstream[n] * gradient.clamp(-given.clamp, given.clamp)
        return Answer(losses.detach(), gradients, None)
    answer = differentiate(defined, leaves, upstream, tangents)
    return answer._replace(losses=losses.detach())


def compare(what: str, actual: Tensor, expected: Tensor, relative: float, absolute: float) -> str:
    actual, expected = actual.detach().double(), expected.double()
    error = (actual - expected).abs()
    wrong = ~((error <= absolute + relative * expected.abs()) | (actual == expected))
    if not wrong.any():
        return ""
    worst = torch.where(wrong, error.nan_to_num(torch.inf), 0.0).argmax()
    return f"{what}: {actual.flatten()[worst]:.12g}, expected {expected.flatten()[worst]:.12g}"


def check(given: Problem, seed: int = 0) -> str:
    """What is wrong with the answer to a problem; nothing where it is right."""
    dtype = given.inputs[0].dtype
    generator = torch.Generator().manual_seed(seed)
    count = len(given.oracle(*[tensor.double() for tensor in given.inputs]))
    upstream = torch.randn(count, dtype=torch.float64, generator=generator).to(torch.float32).double()
    tangents = None
    if given.twice and dtype == torch.float64:
        tangents = [torch.randn(x.shape, dtype=dtype, generator=generator) for x in given.inputs]
    leaves = [tensor.detach().requires_grad_() for tensor in given.inputs]
    actual = differentiate(given.loss(*leaves), leaves, upstream, tangents)
    expected = expected_of(given, upstream, tangents)

    losses = expected.losses
    if "zero_infinity=True" in given.name:
        losses = torch.where(losses == torch.inf, 0.0, losses)
    exact = dtype == torch.float64
    rounding = 0.0 if exact else torch.finfo(dtype).eps
    found = [compare("losses", actual.losses, losses, 1e-11 if exact else 1e-6, 1e-11 if exact else 1e-5)]
    absolute = 1e-10 if exact else 2e-5
    if not exact and given.name.startswith("joiner"):
        # Its logits are rounded as they are made, and posteriors' errors come multiplied by the operands.
        absolute *= max(1.0, *(float(x.abs().max()) for x in given.inputs if x.numel()))
    for k, (own, wanted) in enumerate(zip(actual.gradients, expected.gradients, strict=True)):
        found.append(compare(f"gradient {k}", own, wanted, rounding or 1e-10, absolute))
    for k, (own, wanted) in enumerate(zip(actual.products or [], expected.products or [], strict=True)):
        found.append(compare(f"product {k}", own, wanted, 1e-8, 1e-8))
    return "; ".join(text for text in found if text)


def fuzz(seed: int, first: int = 0, only: str = "") -> Iterator[tuple[int, Problem, str]]:
    """Problems from the first on, and what is wrong with the answer to each."""
    warnings.filterwarnings("ignore", "asg_loss: the target")
    for index in itertools.count(first):
        given = problem(seed, index, only)
        try:
            yield index, given, check(given, index)
        except Exception as error:  # to report, and to go on with the next
            yield index, given, f"{type(error).__name__}: {error}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the problem to begin with")
    parser.add_argument("--only", default="", help="makers whose name contains this: chain, asg, transducer, joiner")
    options = parser.parse_args()
    end, count, failed = time.monotonic() + options.seconds, 0, 0
    for index, given, wrong in fuzz(options.seed, options.first, options.only):
        count += 1
        if wrong:
            failed += 1
            print(f"problem {index}: {given.name}: {wrong}", flush=True)
        if time.monotonic() > end:
            break
    print(f"{count} problems, seed {options.seed}: {failed} wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
