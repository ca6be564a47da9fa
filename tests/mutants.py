"""Wrong CUDA kernels that the tests must notice: each is a text, what takes its place, and the tests that must fail.

    $ python tests/mutants.py --list
    $ python tests/mutants.py --only barrier --jobs 2

Each runs in a copy of the tree, on the simulator. The exit code is 1 where a mutant survives, or its text is not found
exactly once: then the source has changed, and the mutant is to be written anew.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from mutants_cuda import MUTANTS, Mutant

ROOT = pathlib.Path(__file__).parent.parent
_FINGERPRINT = "return digest.hexdigest()[:16]"


class Outcome(NamedTuple):
    """What became of a mutant; it is well where the tests failed, as they must."""

    mutant: Mutant
    word: str
    seconds: float
    output: str = ""


def _copy(folder: pathlib.Path, fingerprint: str) -> None:
    ignored = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", "results")
    shutil.copytree(ROOT, folder, symlinks=True, ignore=ignored)
    # code of the CPU is what it was, and comes from the cache of this tree
    cache = folder / "kernels" / "cache.py"
    text = cache.read_text(encoding="utf-8")
    assert text.count(_FINGERPRINT) == 1
    cache.write_text(text.replace(_FINGERPRINT, f"return {fingerprint!r}"), encoding="utf-8")


def run(mutant: Mutant, fingerprint: str) -> Outcome:
    """Apply a mutant to a copy of the tree and run its tests."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = pathlib.Path(name) / "tree"
        _copy(folder, fingerprint)
        path = folder / "kernels" / "cuda" / mutant.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutant.text) != 1:
            found = f"its text is there {text.count(mutant.text)} times"
            return Outcome(mutant, "NOT FOUND", time.perf_counter() - start, found)
        path.write_text(text.replace(mutant.text, mutant.replacement), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(folder), "NUMBA_ENABLE_CUDASIM": "1"}
        words = [
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            f"tests/{mutant.test}",
            *(["-k", mutant.only] if mutant.only else []),
        ]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *words], cwd=folder, env=environment, capture_output=True, text=True
        )
    took = time.perf_counter() - start
    word = {0: "SURVIVED", 1: "killed"}.get(done.returncode, "NO TEST RAN")  # 1: a test failed
    return Outcome(mutant, word, took, "" if word == "killed" else done.stdout + done.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run the mutants that were asked for; 0 where all were killed."""
    parser = argparse.ArgumentParser(description="wrong CUDA kernels that the tests must notice")
    parser.add_argument("--list", action="store_true", help="name them and their tests")
    parser.add_argument("--only", default="", metavar="TEXT", help="those with TEXT in name or file")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="at once; default: %(default)s")
    arguments = parser.parse_args(argv)
    chosen = [m for m in MUTANTS if arguments.only in f"{m.file} {m.name}"]
    if arguments.list:
        for mutant in chosen:
            print(f"{mutant.file:16} {mutant.name:44} {mutant.test} {mutant.only}".rstrip())
        return 0
    if not chosen:
        print(f"no mutant has {arguments.only!r} in its name")
        return 1
    os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")
    sys.path.insert(0, str(ROOT))
    from dlcore.kernels.cache import library_fingerprint

    wrong = 0
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for outcome in pool.map(lambda mutant: run(mutant, library_fingerprint()), chosen):
            print(
                f"{outcome.word:11} {outcome.seconds:6.1f} s  {outcome.mutant.file}: {outcome.mutant.name}", flush=True
            )
            if outcome.word != "killed":
                wrong += 1
                print(outcome.output[-2000:])
    print(f"{len(chosen) - wrong} of {len(chosen)} killed")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
