"""Compile every kernel that a lattice's operators launch, as they launch it, for the devices named; a program.

    python compile_kernels.py <lattice>

Launches are caught on their way to the device, so no device is needed. Prints a JSON list a line: kernel, target, and
what the compiler says of registers spilled, shared memory in bytes and float64 instructions.
"""

import inspect
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import launches

TARGETS = [GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)]
TYPES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64",
    torch.int32: "i32", torch.int8: "i8", torch.bool: "i1",
}  # fmt: skip
SCALARS = {"tl.int32": "i32", "tl.int64": "i64", "tl.float64": "fp64"}


def compiled(kernel, arguments, constants):
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
    names = list(inspect.signature(kernel.fn).parameters)
    values = dict(zip(names, arguments, strict=False)) | constants
    assert values.keys() == set(names), f"{kernel.__name__}: {set(names) ^ set(values)}"
    signature, attributes, fixed = {}, {}, {}
    for i, name in enumerate(names):
        value = values[name]
        annotation = inspect.signature(kernel.fn).parameters[name].annotation
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif annotation in SCALARS:
            signature[name] = SCALARS[annotation]
        else:
            assert annotation == "tl.constexpr" or value is None, f"{kernel.__name__}: {name} is specialised"
            signature[name], fixed[(i,)] = "constexpr", value
    for target in TARGETS:
        source = ASTSource(kernel, signature, fixed, attributes)
        yield kernel.__name__, target, triton.compile(source, target=target, options=options)


def spilled(result):
    """Bytes of registers kept in memory by each thread."""
    if "cubin" not in result.asm:
        return int(re.search(r"\.private_segment_fixed_size: (\d+)", result.asm["amdgcn"])[1])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", usage)[1]) + int(re.search(r"LOCAL:(\d+)", usage)[1])


def doubles(result):
    """Instructions on float64 values."""
    return len(re.findall(r"\.f64\b|_f64\b", result.asm.get("ptx", "") or result.asm["amdgcn"]))


def main(lattice):
    done = set()
    for kernel, arguments, constants in launches.of(lattice):
        for name, target, result in compiled(kernel, arguments, dict(constants)):
            if result.hash not in done:
                done.add(result.hash)
                print(json.dumps([name, str(target.arch), spilled(result), result.metadata.shared, doubles(result)]))


if __name__ == "__main__":
    main(sys.argv[1])
