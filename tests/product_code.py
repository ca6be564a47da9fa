"""Facts of the machine code of matrix products, as JSON: ``python tests/product_code.py ARCH``, for test_offline.py.

Not on the simulator. One line a kernel: registers, bytes of spills and of local memory, float64 instructions, how
often each kind of 128-bit access occurs, and the hot loop: its instructions and how many are multiply-adds.
"""

import json
import os
import re
import subprocess
import sys
import tempfile

import numba
import numpy as np
from numba import cuda

from bench.offline import pretended_device, tool
from dlcore.kernels.cuda.gemm import TILES, Plan, multiply
from dlcore.kernels.cuda.launch import device_function
from dlcore.kernels.rule import find

_FMA = re.compile(r"\b[FD]FMA\b")


def machine_code(kernel, arguments, arch):
    """The notes of ptxas, the launch bounds among them, and the instructions of ``kernel`` as (address, text)."""
    signature = tuple(map(numba.typeof, arguments))
    cc, options = divmod(arch, 10), kernel.targetoptions
    bounds = {"launch_bounds": options["launch_bounds"]} if options.get("launch_bounds") else {}
    ptx, _ = cuda.compile(kernel.py_func, signature, cc=cc, device=False, abi="numba", output="ptx", **bounds)
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = os.path.join(folder, "kernel.ptx"), os.path.join(folder, "kernel.cubin")
        with open(source, "w") as file:
            file.write(ptx)
        command = [tool("ptxas"), "-v", "-O3", f"-arch=sm_{arch}", source, "-o", cubin]
        notes = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        path = {**os.environ, "PATH": os.path.dirname(tool("nvdisasm")) + os.pathsep + os.environ["PATH"]}
        command = [tool("cuobjdump"), "-sass", cubin]
        sass = subprocess.run(command, capture_output=True, text=True, check=True, env=path).stdout
    lines = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", sass, re.MULTILINE)
    notes += " ".join(re.findall(r"\.(?:maxntid|minnctapersm) \d+", ptx))
    return notes, [(int(address, 16), text) for address, text in lines]


def hot_loop(code):
    """The instructions of the loop with most multiply-adds, from a branch backwards to where it goes; the innermost."""
    loops = []
    for address, text in code:
        branch = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)", text)
        if branch and int(branch[1], 16) < address:
            loops.append([t for a, t in code if int(branch[1], 16) <= a <= address])
    return max(loops, key=lambda loop: (sum(_FMA.search(text) is not None for text in loop), -len(loop)))


def facts(name, launch, arch):
    """What is asserted of one kernel."""
    notes, code = machine_code(launch.kernel, launch.arguments, arch)

    def number(pattern):
        return sum(int(n) for n in re.findall(pattern, notes))

    def count(pattern, lines=tuple(text for _, text in code)):
        return sum(re.search(pattern, text) is not None for text in lines)

    loop = hot_loop(code)
    return {
        "kernel": name,
        "threads": number(r"maxntid (\d+)"),
        "blocks": number(r"minnctapersm (\d+)"),
        "registers": number(r"Used (\d+) registers"),
        "spills": number(r"(\d+) bytes spill"),
        "local": number(r"(\d+) bytes stack frame") + count(r"\b(LDL|STL)\b"),
        "float64": count(r"\b(DADD|DMUL|DFMA|DSETP)\b|F64"),
        "wide": {kind: count(rf"\b{kind}\b.*\.128\b") for kind in ("LDG", "LDS", "STS", "STG")},
        "loop": len(loop),
        "multiply_adds": count(_FMA, loop),
    }


def launches():
    """Products of small matrices with the tiles that need most registers and with the whole epilogue; the merge."""
    for kind, tile, access in ((np.float32, 0, "wide"), (np.float32, 1, "scalar"), (np.float64, 0, "wide")):
        dtype = np.dtype(kind)
        tile = TILES[dtype][tile]
        value = device_function(find("activation", "relu"), "value", dtype)
        size = 8 if access == "wide" else 9
        a, b, y, z = (np.zeros((size, size), dtype) for _ in range(4))
        first, *_ = multiply(a, b, y, "ab^T", value, y[0], z, Plan(tile, 1, tile.slice))
        yield f"{dtype} {tile.rows}x{tile.columns} {access}", first
    *_, last = multiply(a, b, y, "ab", value, y[0], z, Plan(tile, 2, tile.slice))
    yield f"{dtype} merge wide", last


if __name__ == "__main__":
    arch = int(sys.argv[1])
    with pretended_device(arch):
        for name, launch in launches():
            print(json.dumps(facts(name, launch, arch)), flush=True)
