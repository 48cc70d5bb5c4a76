"""Compile every kernel that a lattice's operators launch, for the devices named; a program.

    python compile_kernels.py <lattice>

Launches are caught on their way to the device, so no device is needed. In every form that is launched kernels are
compiled for the newer of NVIDIA's devices and for AMD's, for the older one in their first. Prints a JSON list a line:
kernel, target, what the compiler says of registers spilled and shared memory in bytes; and how many products are
contracted into an exchange between lanes, and how many warps a scan goes over.
"""

import json
import re
import sys
from unittest import mock

import machine_code
import torch
from triton.backends.compiler import GPUTarget

import launches

OLDER = 80
# By the version of ROCm that torch is built for, upon which launches depend.
TARGETS = {None: [GPUTarget("cuda", OLDER, 32), GPUTarget("cuda", 90, 32)], "7.0": [GPUTarget("hip", "gfx942", 64)]}


def spilled(result):
    """Bytes of registers kept in memory by each thread."""
    if "cubin" not in result.asm:
        return int(re.findall(r"\.private_segment_fixed_size: (\d+)", result.asm["amdgcn"])[0])
    return machine_code.resources(result).spilled


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
            for target, result in machine_code.compiled(kernel, arguments, constants, wanted):
                if result.hash not in done:
                    done.add(result.hash)
                    facts = (spilled(result), result.metadata.shared, contracted(result), scanned(result))
                    print(json.dumps([kernel.__name__, str(target.arch), *facts]))


if __name__ == "__main__":
    main(sys.argv[1])
