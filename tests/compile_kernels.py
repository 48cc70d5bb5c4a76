"""Compile every kernel that a lattice's operators launch, for the devices named; a program.

    python compile_kernels.py <lattice>

Launches are caught on their way to the device, so no device is needed. In every form that is launched kernels are
compiled for the newer of NVIDIA's devices and for AMD's, for the older one in their first. Prints a JSON list a line:
kernel, target, what the compiler says of registers spilled and shared memory in bytes; and how many products are
contracted into an exchange between lanes, and how many warps a scan goes over.
"""

import inspect
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import launches

OLDER = 80
# By the version of ROCm that torch is built for, upon which launches depend.
TARGETS = {None: [GPUTarget("cuda", OLDER, 32), GPUTarget("cuda", 90, 32)], "7.0": [GPUTarget("hip", "gfx942", 64)]}
TYPES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64",
    torch.int32: "i32", torch.int8: "i8", torch.bool: "i1",
}  # fmt: skip
SCALARS = {"tl.int32": "i32", "tl.int64": "i64", "tl.float64": "fp64"}


def compiled(kernel, arguments, constants, targets):
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
    for target in targets:
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


def contracted(result):
    """Fused multiply-adds whose addend is another lane's, of a sum over lanes.

    The lane itself and the other one round different products, and each ends with a sum of its own.
    """
    exchanged, found = set(), 0
    for line in result.asm.get("ptx", "").splitlines():
        target, *sources = re.findall(r"%\w+", line) or [""]
        copies = re.search(r"\b(mov|cvt|shl|or)\.", line) and exchanged.intersection(sources)
        if "shfl.sync.bfly" in line or copies:
            exchanged.add(target)
        elif re.search(r"\bfma\.", line) and sources[-1] in exchanged:
            found += 1
    return found


def scanned(result):
    """Warps of a program that scans, else 0."""
    return result.metadata.num_warps if "tt.scan" in result.asm["ttir"] else 0


def main(lattice):
    done, met = set(), set()
    for rocm, targets in TARGETS.items():
        with mock.patch.object(torch.version, "hip", rocm):
            caught = launches.of(lattice)
        for kernel, arguments, constants in caught:
            wanted = [target for target in targets if target.arch != OLDER or kernel not in met]
            met.add(kernel)
            for name, target, result in compiled(kernel, arguments, dict(constants), wanted):
                if result.hash not in done:
                    done.add(result.hash)
                    facts = (spilled(result), result.metadata.shared, contracted(result), scanned(result))
                    print(json.dumps([name, str(target.arch), *facts]))


if __name__ == "__main__":
    main(sys.argv[1])
