"""How large launches are: blocks, grids and warps, from sizes alone, whichever framework owns the memory."""

from __future__ import annotations

from typing import Any, NamedTuple

# Bytes, as the kernel computes with them, that one program of a row kernel works on at a time: more does not fit into
# its registers.
TILE = 4096
# States, or label positions, that a program of a recursion holds; what is longer is done in strips.
STRIP = 2048
# Nodes that a program writes the posteriors of.
NODES = 256


def bucket(size: int, least: int, most: int) -> int:
    """The power of two that a block of ``size`` is rounded up to."""
    return min(max(1 << (max(size, 1) - 1).bit_length(), least), most)


def programs(size: int, block: int) -> int:
    """How many blocks cover a size."""
    return -(-size // block)


class Tiles(NamedTuple):
    """Rows and classes that a program works on at a time."""

    rows: int
    classes: int


def tiles(num_classes: int, itemsize: int) -> Tiles:
    """Of classes of so many bytes each, as they are computed with."""
    size = TILE // itemsize
    classes = bucket(num_classes, 16, size)
    # Triton 3.6 fails to compile some kernels for more rows than that in float64.
    return Tiles(min(size // classes, 8) if itemsize == 8 else size // classes, classes)


def row_tiles(num_classes: int, itemsize: int) -> Tiles:
    """Of kernels that hold much of each row beside its classes: many rows of few classes would fill the registers."""
    rows, classes = tiles(num_classes, itemsize)
    return Tiles(min(rows, 16), classes)


def warps(block: int, lanes: int = 32) -> int:
    """Warps of a program whose lanes wait for each other: about one lane an element."""
    return min(max(block // lanes, 1), 16)


def recursion(width: int) -> dict[str, Any]:
    """Constants of a recursion over so many states, or label positions."""
    block = bucket(width, 32, STRIP)
    return {"BLOCK": block, "num_warps": warps(block)}


def aligned(num_classes: int, itemsize: int) -> int:
    """How many elements of contiguous rows are moved at a time: 16 bytes where rows are made of such pieces, else 1."""
    return 16 // itemsize if num_classes * itemsize % 16 == 0 else 1


def layout(num_classes: int, itemsize: int) -> dict[str, Any]:
    """The same of kernels that move pieces of 16 bytes wherever a row begins, and its ragged ends apart."""
    return {"ALIGNED": 16 // itemsize, "RAGGED": num_classes * itemsize % 16 != 0}


def entries(count: int) -> dict[str, Any]:
    """Constants of kernels that write the entries of states' classes, of samples with so many."""
    # A scan within a warp waits for no other.
    block = bucket(count, 32, 256)
    return {"ROWS": 256 // block, "BLOCK": block, "num_warps": 1}


def table_blocks(num_classes: int) -> tuple[int, int]:
    """How many programs weigh transitions (C, C), each of which looks at all, and how many of these at a time."""
    block = bucket(num_classes**2, 128, 1024)
    return min(programs(num_classes**2, block), 64), block


class Cells(NamedTuple):
    """Programs of transitions (C, C), each of a block of those into one state."""

    grid: tuple[int, int]
    block: int


def cells(num_classes: int) -> Cells:
    block = bucket(num_classes, 16, 32)
    return Cells((num_classes, programs(num_classes, block)), block)
