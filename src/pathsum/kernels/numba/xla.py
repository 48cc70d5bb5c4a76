"""Losses as foreign functions of XLA on the CPU, without Python: small batches of float32, the others are declined.

XLA calls with a frame of pointers, whose layout is the stable interface of ``xla/ffi/api/c_api.h``; an address is an
int64 here. The arguments are scores and three arrays of int32, the results losses and, where there is room for it,
their gradient. All are contiguous, with axes in front of a batch's own where vmap has put some.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config, njit

from pathsum.kernels.numba import small
from pathsum.kernels.numba.addresses import array_at, for_c, word_at
from pathsum.kernels.numba.compilation import COMPILE

# Where a frame has the address of what extends it, how many results there are, and the addresses of the arguments, of
# the results, and of the attributes, which are in the order of their names: a text, and an array of numbers.
_EXTENSION, _NUM_RESULTS, _ARGUMENTS, _RESULTS, _ATTRIBUTES = 8, 96, 72, 112, 160
_NUMBERS = 8
# Where a buffer has its address, its rank, and the address of its sizes; where an array of numbers has its address.
_DATA, _RANK, _SIZES, _NUMBERS_DATA = 24, 32, 40, 16

# What a function returns that has not done its work; 0 where it has, and else the address of an error.
_DECLINED = 1


@njit(**COMPILE)
def _extent(buffer):
    """The address of an argument or a result, and how many elements it has."""
    sizes, count = word_at(buffer + _SIZES), 1
    for axis in range(word_at(buffer + _RANK)):
        count *= word_at(sizes + 8 * axis)
    return word_at(buffer + _DATA), count


@njit(**COMPILE)
def _size(buffer, axis):
    """The size of an axis, counted from the end."""
    return word_at(word_at(buffer + _SIZES) + 8 * (word_at(buffer + _RANK) - axis))


@njit(**COMPILE)
def _integers(buffer):
    """An argument of int32 as flat int64."""
    address, count = _extent(buffer)
    given, own = array_at(address, count, np.int32), np.empty(count, np.int64)
    for i in range(count):
        own[i] = given[i]
    return own


@njit(**COMPILE)
def _call(frame):
    """Of a call with the arguments and results of all: the buffer of the scores, what they hold, the integers, and what
    is to hold losses and gradient.
    """
    arguments, results = word_at(frame + _ARGUMENTS), word_at(frame + _RESULTS)
    scores, targets = word_at(arguments), word_at(arguments + 8)
    lengths, target_lengths = _integers(word_at(arguments + 16)), _integers(word_at(arguments + 24))
    given, losses = _extent(scores), _extent(word_at(results))
    gradient = _extent(word_at(results + 8)) if word_at(frame + _NUM_RESULTS) > 1 else (losses[0], 0)
    return (
        scores,
        array_at(given[0], given[1], np.float32),
        (_integers(targets).reshape(lengths.size, _size(targets, 1)), lengths, target_lengths),
        (array_at(losses[0], losses[1], np.float32), array_at(gradient[0], gradient[1], np.float32)),
    )


@njit(**COMPILE)
def _options(frame, count):
    """The first numbers that come after that of the function."""
    numbers = word_at(word_at(word_at(frame + _ATTRIBUTES) + _NUMBERS) + _NUMBERS_DATA)
    return array_at(numbers + 8, count, np.float64)


def _solve_chains(frame):
    problem, blank, logits = _options(frame, 3)
    scores, flat, integers, results = _call(frame)
    solved = small.solve_chains(
        flat, _size(scores, 2), _size(scores, 1), *integers, problem == 0, np.int64(blank), logits != 0, *results
    )
    return 0 if solved else _DECLINED


def _solve_grids(frame):
    blank, logits, fastemit_lambda, clamp = _options(frame, 4)
    scores, flat, integers, results = _call(frame)
    solved = small.solve_grids(
        flat, _size(scores, 3), _size(scores, 2), _size(scores, 1), *integers, np.int64(blank), logits != 0,
        fastemit_lambda, clamp, *results,
    )  # fmt: skip
    return 0 if solved else _DECLINED


# A number for each: what has another is for Python alone. Programs that are kept have these numbers in them.
PYTHON, CHAINS, GRIDS = 0, 1, 2
_FUNCTIONS = {CHAINS: (_solve_chains, small.solve_chains), GRIDS: (_solve_grids, small.solve_grids)}


class Handler:
    """The function that XLA calls: the compiled one whose number the frame has, and Python for what that declines.

    Args:
        python: The address of Python's function.
    """

    def __init__(self, python: int) -> None:
        self._table = (ctypes.c_int64 * (1 + len(_FUNCTIONS)))(*[python] * (1 + len(_FUNCTIONS)))
        self._compiled: dict[int, Any] = {}
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        program = llvm.parse_assembly(str(_dispatch(ctypes.addressof(self._table))))
        machine = llvm.Target.from_default_triple().create_target_machine()
        self._engine = llvm.create_mcjit_compiler(program, machine)
        self._engine.finalize_object()
        self.address = self._engine.get_function_address("pathsum")

    def prepare(self, number: int, size: int) -> None:
        """Have the function of a number called from now on, compiled where it has not been before.

        ``size`` is that of the scores: a batch that will be declined need not wait for it.
        """
        small_enough = size < small.MOST_SCORES
        if small_enough and number in _FUNCTIONS and number not in self._compiled and not config.DISABLE_JIT:
            # Of two threads that compile one keeps its own, which XLA may be calling.
            self._table[number] = self._compiled.setdefault(number, for_c(*_FUNCTIONS[number])).address


def _dispatch(table: int) -> ir.Module:
    word = ir.IntType(64)
    module = ir.Module()
    module.triple = llvm.get_default_triple()
    kind = ir.FunctionType(word, [word])
    function = ir.Function(module, kind, "pathsum")
    (frame,) = function.args
    builder = ir.IRBuilder(function.append_basic_block())

    def load(address: Any, offset: int, what: Any = word) -> Any:
        return builder.load(builder.inttoptr(builder.add(address, word(offset)), what.as_pointer()))

    def call(number: Any) -> Any:
        place = builder.add(word(table), builder.mul(number, word(8)))
        return builder.call(builder.inttoptr(load(place, 0), kind.as_pointer()), [frame])

    # A question about the function itself, which comes without attributes.
    with builder.if_then(builder.icmp_signed("!=", load(frame, _EXTENSION), word(0))):
        builder.ret(call(word(PYTHON)))
    numbers = load(load(load(frame, _ATTRIBUTES), _NUMBERS), _NUMBERS_DATA)
    found = call(builder.fptosi(load(numbers, 0, ir.DoubleType()), word))
    with builder.if_then(builder.icmp_signed("==", found, word(_DECLINED))):
        builder.ret(call(word(PYTHON)))
    builder.ret(found)
    return module
