"""The disk cache: Numba's file format, filed under what a function means rather than where it was written.

What Numba's own cache cannot do here, and this one does: functions whose text was generated, functions that call a
user's rule, and a miss whenever the rule, anything it calls, or this package was edited. Every function is filed
under a fingerprint of its whole meaning (its text, the text of the rules in it, this package, Numba).
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import time
import warnings
from typing import Any

import numba
import numpy as np
from numba.core import caching, config
from numba.core.runtime import rtsys

_STALE_DAYS = 30


@functools.cache
def library_fingerprint() -> str:
    """A hash of every source file of this package and of the versions it was compiled with."""
    versions = (numba.__version__, np.__version__, sys.version_info[:2], vars(config)["BOUNDSCHECK"])
    digest = hashlib.sha256(repr(versions).encode())
    root = pathlib.Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _default_cache() -> pathlib.Path:
    if "DLCORE_CACHE_DIR" in os.environ:
        return pathlib.Path(os.environ["DLCORE_CACHE_DIR"])
    home = pathlib.Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "dlcore"
    if os.name == "nt":
        return pathlib.Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "dlcore" / "Cache"
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME", home / ".cache")) / "dlcore"


@functools.cache
def cache_directory() -> pathlib.Path:
    """The folder of compiled code of this version: under ``DLCORE_CACHE_DIR`` or the user's cache folder."""
    base = _default_cache()
    path = base / library_fingerprint()
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        path = pathlib.Path(tempfile.mkdtemp(prefix="dlcore-"))
        warnings.warn(
            f"the cache folder {base} cannot be written ({error.strerror}); compiled code is kept in {path} and lost "
            "with it. Set DLCORE_CACHE_DIR to a writable folder.",
            RuntimeWarning,
            stacklevel=2,
        )
        return path
    os.utime(path)
    _drop_stale(base, path)
    return path


def _drop_stale(base: pathlib.Path, current: pathlib.Path) -> None:
    """Remove the folders of other versions that nobody used for a month."""
    limit = time.time() - _STALE_DAYS * 86400
    for other in base.iterdir():
        versioned = other != current and len(other.name) == len(current.name) and other.is_dir()
        if versioned and other.stat().st_mtime < limit:
            shutil.rmtree(other, ignore_errors=True)


def write_whole(path: pathlib.Path, data: bytes) -> None:
    """Write a file of the cache: other processes see the old one or the new one, never a part."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    draft.write_bytes(data)
    draft.replace(path)


class _Locator(caching._CacheLocator):
    """Numba's question "where is the cache of this function, and is it stale?", answered by its fingerprint."""

    def __init__(self, function: Any) -> None:
        self._fingerprint = function.__fingerprint__
        self._py_file = function.__code__.co_filename

    def get_cache_path(self) -> str:
        return str(cache_directory())

    def get_source_stamp(self) -> str:
        return self._fingerprint

    def get_disambiguator(self) -> str:
        return self._fingerprint[:16]

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _Locator:
        return cls(py_func)


class _Implementation(caching.CompileResultCacheImpl):
    kind = "native"

    def __init__(self, function: Any) -> None:
        self._locator = _Locator(function)
        self._lineno = function.__code__.co_firstlineno
        name = f"{function.__name__}.{self.kind}"
        self._filename_base = self.get_filename_base(name, getattr(sys, "abiflags", ""))


class _CallbackImplementation(_Implementation):
    kind = "callback"  # compiled without the wrapper that Python calls: not to be taken for a native function


class NativeCache(caching.FunctionCache):
    _impl_class = _Implementation

    def holds_it(self) -> bool:
        """Whether the function is on the disk."""
        return os.path.exists(self._cache_file._index_path)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What is on the disk, without the declarations of all that Numba can compile: they take it 0.2 s.

        Compiled code needs its runtime, whose symbols it refers to; a miss is followed by a compilation, which asks for
        the rest itself.
        """
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)


class CallbackCache(NativeCache):
    _impl_class = _CallbackImplementation


def fingerprint(*texts: str) -> str:
    """The name under which code with this meaning is filed."""
    return hashlib.sha256("\0".join([library_fingerprint(), *texts]).encode()).hexdigest()
