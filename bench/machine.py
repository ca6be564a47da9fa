"""The machine code of CUDA kernels, compiled and read without a GPU.

Needs numba-cuda, ``ptxas`` and ``nvdisasm`` (of a toolkit, or of the wheels nvidia-cuda-nvcc and -nvdisasm).
"""

from __future__ import annotations

import bisect
import functools
import itertools
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

TOOLS = ("ptxas", "nvdisasm")
MEMORY = ("LDG", "STG", "LDS", "STS")

# arithmetic on float64 and conversions from and to it
_FLOAT64 = re.compile(r"\b(?:D(?:ADD|MUL|FMA|SETP|MNMX|MMA)\b|MUFU\.\w+64H|(?:F2F|I2F|F2I|FRND)\b\S*\.F64\b)")
_FMA = re.compile(r"\b[FD]FMA2?\b")
_MMA = re.compile(r"\b(?:HMMA|DMMA|HGMMA|UTCHMMA)\b")
_ACCESS = re.compile(r"\b(LDG|STG|LDS|STS)(?:STS)?(\.\S*)?(?=\s)")  # LDGSTS, a copy past the registers, is a load
_BRANCH = re.compile(r"\bBRA\b.*?\b0x([0-9a-f]+)")
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", re.MULTILINE)


class Binary(NamedTuple):
    """A kernel, assembled for one architecture."""

    name: str
    arch: int
    notes: str  # of ptxas: registers, spills, memory
    code: bytes


class Code(NamedTuple):
    """What the compiler made of one kernel for one architecture."""

    name: str
    arch: int
    registers: int
    spills: int  # bytes stored and loaded
    local: int  # bytes of the stack frame, spills included
    shared: int  # bytes
    wide: dict[str, int]  # 128-bit accesses by instruction
    accesses: dict[str, int]  # all accesses by instruction
    float64: int  # instructions
    fma: int
    mma: int
    hot: tuple[int, int]  # FMA and MMA instructions of the hot loop, and all of its instructions; 0, 0 without one
    instructions: int

    @property
    def kernel(self) -> str:
        """The name of the kernel function, without instruction, rule and dtype."""
        return self.name.split("/")[-2]

    @property
    def dtype(self) -> str:
        """Of the model."""
        return self.name.rsplit("/", 1)[-1]

    @property
    def hot_share(self) -> float:
        """The share of FMA and MMA in the hot loop."""
        return self.hot[0] / self.hot[1] if self.hot[1] else 0.0


# ---------------------------------------------------------------------------------------------------- tools


@functools.cache
def tool(name: str) -> str | None:
    """The path of a tool: in NVIDIA's wheels beside this Python, on PATH, or under CUDA_HOME."""
    for root in map(pathlib.Path, sys.path):
        for path in sorted(root.glob(f"nvidia/*/bin/{name}")) if root.is_dir() else ():
            return str(path)
    found = shutil.which(name)
    if found is None and "CUDA_HOME" in os.environ:
        found = shutil.which(name, path=os.path.join(os.environ["CUDA_HOME"], "bin"))
    return found


def why_not() -> str | None:
    """None where kernels can be compiled here, else what is missing and what adds it."""
    from dlcore.kernels.device import simulated

    if simulated():
        return "NUMBA_ENABLE_CUDASIM is set: the simulator compiles nothing"
    try:
        import numba_cuda  # noqa: F401
    except ImportError:
        return "numba-cuda is not installed; pip install 'dlcore[cuda13]' adds it"
    missing = [name for name in TOOLS if tool(name) is None]
    if not missing:
        return None
    wheels = "pip install 'cuda-toolkit[nvcc]==13.0.*' nvidia-cuda-nvdisasm"
    return f"not found: {', '.join(missing)}; {wheels} adds them, or set CUDA_HOME to a CUDA toolkit"


def run(*command: str) -> tuple[str, str]:
    """Output and messages of a tool."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{os.path.basename(command[0])}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout, done.stderr


# ---------------------------------------------------------------------------------------------- compilation


def ptx_of(entry: Any, arch: int) -> str:
    """The PTX of an entry of the catalogue."""
    from dlcore.kernels.cuda.machine_code import Kernel, ptx

    return ptx(Kernel(entry.function, **entry.options), entry.signature, arch)


def ptx_for(entry: Any, architectures: Sequence[int]) -> list[str]:
    """The PTX of an entry for each of some architectures, of one pass of Numba: what differs comes from NVVM."""
    from numba.cuda import compiler

    from dlcore.kernels.cuda.machine_code import Kernel, pretended_device

    front = getattr(compiler, "_compile_pyfunc_with_fixup", None)  # what numba.cuda.compile begins with
    if front is None or not architectures:
        return [ptx_of(entry, arch) for arch in architectures]
    kernel, capabilities = Kernel(entry.function, **entry.options), [divmod(arch, 10) for arch in architectures]
    with pretended_device(architectures[0]):
        library, _ = front(
            kernel.py_func, entry.signature, cc=capabilities[0], device=False, abi="numba", **kernel.options
        )
        return ["\n".join(library.get_asm_strs(cc=capability)) for capability in capabilities]


def assemble(name: str, ptx: str, arch: int) -> Binary:
    """What ``ptxas`` makes of ``ptx``."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = pathlib.Path(folder, "kernel.ptx"), pathlib.Path(folder, "kernel.cubin")
        source.write_text(ptx)
        _, notes = run(tool("ptxas") or "", "-v", "-O3", f"-arch=sm_{arch}", str(source), "-o", str(cubin))
        return Binary(name, arch, notes, instructions(cubin.read_bytes()))


def instructions(cubin: bytes) -> bytes:
    """The machine code in an ELF file of 64 bits: its sections ``.text.*``, one behind the other."""
    place, (size, count, names) = struct.unpack_from("<Q", cubin, 0x28)[0], struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, place + k * size) for k in range(count)]  # name, ..., offset, size
    strings = headers[names][4]
    return b"".join(
        cubin[offset : offset + length]
        for name, _, _, _, offset, length in headers
        if cubin.startswith(b".text.", strings + name)
    )


def codes(binaries: Sequence[Binary]) -> list[Code]:
    """The facts of kernels of one architecture; ``nvdisasm`` takes longer to start than to read one of them."""
    with tempfile.TemporaryDirectory() as folder:
        image = pathlib.Path(folder, "kernels.bin")
        image.write_bytes(b"".join(binary.code for binary in binaries))
        sass, _ = run(tool("nvdisasm") or "", "-b", f"SM{binaries[0].arch}", str(image))
    places, lines = zip(*((int(found[1], 16), found[0]) for found in _INSTRUCTION.finditer(sass)), strict=True)
    ends = itertools.accumulate(len(binary.code) for binary in binaries)
    first, found = 0, []
    for binary, end in zip(binaries, ends, strict=True):
        last = bisect.bisect_left(places, end)
        found.append(read(binary.name, binary.arch, binary.notes, "\n".join(lines[first:last])))
        first = last
    return found


# -------------------------------------------------------------------------------------------------- reading


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def parse(sass: str) -> list[tuple[int, str]]:
    """Address and text of each instruction."""
    return [(int(address, 16), text) for address, text in _INSTRUCTION.findall(sass)]


def _useful(text: str) -> bool:
    return bool(_FMA.search(text) or _MMA.search(text))


def hot_loop(code: Sequence[tuple[int, str]]) -> list[str]:
    """The innermost loop with the most FMA and MMA instructions; empty where no loop holds any.

    A loop is what lies between a branch to an earlier address and its target; it is innermost where no other lies in
    it. Of equals, the shortest.
    """
    spans = []
    for address, text in code:
        branch = _BRANCH.search(text)
        if branch and int(branch[1], 16) < address:  # the branch to itself at the end of every kernel is no loop
            spans.append((int(branch[1], 16), address))
    best: list[str] = []
    for first, last in spans:
        if any((a, b) != (first, last) and first <= a and b <= last for a, b in spans):
            continue
        body = [text for address, text in code if first <= address <= last]
        rank = sum(map(_useful, body)), -len(body)
        if rank[0] and (not best or rank > (sum(map(_useful, best)), -len(best))):
            best = body
    return best


def read(name: str, arch: int, notes: str, sass: str) -> Code:
    """The facts in the notes of ptxas and the listing of nvdisasm."""
    code = parse(sass)
    if not code:
        raise RuntimeError(f"{name}: there is no machine code")
    lines = [text for _, text in code]
    wide, accesses = dict.fromkeys(MEMORY, 0), dict.fromkeys(MEMORY, 0)
    for line in lines:
        access = _ACCESS.search(line)
        if access:
            accesses[access[1]] += 1
            wide[access[1]] += ".128" in (access[2] or "")
    body = hot_loop(code)
    return Code(
        name,
        arch,
        _number(r"Used (\d+) registers", notes),
        _number(r"(\d+) bytes spill stores", notes) + _number(r"(\d+) bytes spill loads", notes),
        _number(r"(\d+) bytes stack frame", notes),
        _number(r"(\d+) bytes smem", notes),
        wide,
        accesses,
        sum(_FLOAT64.search(line) is not None for line in lines),
        sum(_FMA.search(line) is not None for line in lines),
        sum(_MMA.search(line) is not None for line in lines),
        (sum(map(_useful, body)), len(body)),
        len(code),
    )
