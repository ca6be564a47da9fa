"""What threads need from the machine: atomic words, pauses, futexes, affinity, and the floating-point control.

Each function works on int64 addresses and is compiled into its caller. Where a machine or a system lacks one, it does
nothing and says so through its result. Threads sleep in a futex, which Windows has under another name; elsewhere in the
lot, a mutex and a condition variable of the whole process. :data:`HAS_FUTEX` tells which; code that depends on it names
:data:`VARIANT` among the meanings it is compiled under.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils

from ..native import intrinsic

X86 = platform.machine() in ("x86_64", "AMD64")
ARM = platform.machine() in ("aarch64", "arm64", "ARM64")
LINUX = sys.platform.startswith("linux")
WINDOWS = os.name == "nt"

_FUTEX_CALL = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), 0)
HAS_FUTEX = WINDOWS or (LINUX and _FUTEX_CALL != 0 and sys.maxsize > 2**32 and os.environ.get("DLCORE_NO_FUTEX") != "1")
VARIANT = "futex" if HAS_FUTEX else "lot"

CYCLES_PER_MICROSECOND = 3000  # of cycle_counter(); an x86 counts 2000 to 4000
AFFINITY_WORDS = 16  # of a CPU mask: 1024 CPUs

_I32, _I64, _VOID = ir.IntType(32), ir.IntType(64), ir.VoidType()
_FUTEX_WAIT, _FUTEX_WAKE = 128, 129  # of this process only
_EVERYBODY = 2**31 - 1
_FTZ_DAZ = 0x8040  # MXCSR: results flush to zero (15), operands that are denormal count as zero (6)
_FZ = 1 << 24  # FPCR: both

_LOT = "dlcore_lot"  # the name by which compiled code finds the lot
_MUTEX, _CONDITION, _LOT_BYTES = 0, 128, 256  # where they lie in it; each takes 40 to 64 bytes
_lot: Any = None

if WINDOWS:  # the compiled code finds its symbols among those of the C runtime, where these are not
    for _library, _names in (("kernel32", ["SwitchToThread"]), ("kernelbase", ["WaitOnAddress", "WakeByAddressAll"])):
        for _name in _names:
            _function = getattr(getattr(vars(ctypes)["windll"], _library), _name)
            binding.add_symbol(_name, ctypes.cast(_function, ctypes.c_void_p).value)


def open_lot() -> None:
    """Make the lot, or make it anew in a forked child, where its mutex may be that of a thread that is not there."""
    global _lot
    if HAS_FUTEX:
        return
    if _lot is None:
        _lot = ctypes.create_string_buffer(_LOT_BYTES)
        binding.add_symbol(_LOT, ctypes.addressof(_lot))
    ctypes.memset(_lot, 0, _LOT_BYTES)
    process = ctypes.CDLL(None)
    for name, offset in (("pthread_mutex_init", _MUTEX), ("pthread_cond_init", _CONDITION)):
        if error := getattr(process, name)(ctypes.byref(_lot, offset), None):
            raise OSError(error, f"{name}: {os.strerror(error)}")


open_lot()


def _pointer(builder: Any, address: Any, element: Any = _I64) -> Any:
    return builder.inttoptr(address, element.as_pointer())


def _call(builder: Any, name: str, result: Any, *arguments: Any, var_arg: bool = False) -> Any:
    """A call of the C function or LLVM intrinsic ``name``."""
    parameters = [] if var_arg else [argument.type for argument in arguments]
    function_type = ir.FunctionType(result, parameters, var_arg=var_arg)
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)


def _assembly(builder: Any, text: str, result: Any, constraint: str, *arguments: Any) -> Any:
    function_type = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.asm(function_type, text, constraint, arguments, side_effect=True)


def _int(value: int, kind: Any = _I64) -> Any:
    return ir.Constant(kind, value)


# ------------------------------------------------------------------------------------------------------- atomics


@intrinsic
def atomic_add(typing_context, address, value):
    """Add to the word and return what it was; a full fence."""

    def codegen(context, builder, signature, arguments):
        return builder.atomic_rmw("add", _pointer(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def load_acquire(typing_context, address):
    """The word; what its writer wrote before it is visible too. Never earlier than an atomic_add before it."""

    def codegen(context, builder, signature, arguments):
        # a plain acquire may overtake an earlier atomic_add on AArch64, and a sleeper would be missed
        return builder.load_atomic(_pointer(builder, arguments[0]), ordering="seq_cst", align=8)

    return types.int64(types.int64), codegen


@intrinsic
def store_release(typing_context, address, value):
    """Set the word after everything that was written before it."""

    def codegen(context, builder, signature, arguments):
        builder.store_atomic(arguments[1], _pointer(builder, arguments[0]), ordering="release", align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


# ------------------------------------------------------------------------------------------------------- waiting


@intrinsic
def pause(typing_context):
    """Tell the core that this is a waiting loop."""

    def codegen(context, builder, signature, arguments):
        if X86:
            _call(builder, "llvm.x86.sse2.pause", _VOID)
        elif ARM:
            _assembly(builder, "yield", _VOID, "~{memory}")
        else:
            builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def sched_yield(typing_context):
    """Let another thread that is ready run on this core."""

    def codegen(context, builder, signature, arguments):
        _call(builder, "SwitchToThread" if WINDOWS else "sched_yield", _I32)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def cycle_counter(typing_context):
    """A clock of about CYCLES_PER_MICROSECOND; always 0 where a program may not read one, so count turns as well."""

    def codegen(context, builder, signature, arguments):
        if X86:
            return _call(builder, "llvm.readcyclecounter", _I64)
        if ARM:  # its cycle counter traps in user mode, its timer (24 MHz to 1 GHz) does not
            ticks = _assembly(builder, "mrs $0, cntvct_el0", _I64, "=r")
            frequency = _assembly(builder, "mrs $0, cntfrq_el0", _I64, "=r")
            return builder.mul(ticks, builder.udiv(_int(CYCLES_PER_MICROSECOND * 1_000_000), frequency))
        return _int(0)

    return types.int64(), codegen


def _futex(builder: Any, operation: int, address: Any, value: Any, timeout: Any) -> None:
    words = (_int(_FUTEX_CALL), address, _int(operation), value, timeout, _int(0), _int(0))
    _call(builder, "syscall", _I64, *words, var_arg=True)


def _wait_on_address(builder: Any, address: Any, expected: Any, timeout: Any) -> None:
    nanoseconds = builder.load(_pointer(builder, builder.add(timeout, _int(8))))
    milliseconds = builder.trunc(builder.udiv(nanoseconds, _int(1_000_000)), _I32)
    value = builder.ptrtoint(cgutils.alloca_once_value(builder, expected), _I64)
    _call(builder, "WaitOnAddress", _I32, address, value, _int(8), milliseconds)


def _in_lot(builder: Any, name: str, *offsets: int) -> None:
    """Call a function of POSIX threads on what lies at these offsets of the lot."""
    lot = builder.module.globals.get(_LOT)
    if lot is None:
        lot = ir.GlobalVariable(builder.module, ir.ArrayType(ir.IntType(8), _LOT_BYTES), _LOT)
    start = builder.ptrtoint(lot, _I64)
    _call(builder, name, _I32, *(builder.add(start, _int(offset)) for offset in offsets))


@intrinsic
def sleep_while(typing_context, address, expected, timeout):
    """Sleep while the word is ``expected``, until a wake, or sooner.

    ``timeout`` is the address of two words, seconds (0) and nanoseconds; the lot needs none.
    """

    def codegen(context, builder, signature, arguments):
        if WINDOWS:
            _wait_on_address(builder, *arguments)
        elif HAS_FUTEX:  # it looks at the low half of the word
            _futex(builder, _FUTEX_WAIT, arguments[0], arguments[1], arguments[2])
        else:
            _in_lot(builder, "pthread_mutex_lock", _MUTEX)
            word = builder.load_atomic(_pointer(builder, arguments[0]), ordering="seq_cst", align=8)
            with builder.if_then(builder.icmp_signed("==", word, arguments[1])):
                _in_lot(builder, "pthread_cond_wait", _CONDITION, _MUTEX)
            _in_lot(builder, "pthread_mutex_unlock", _MUTEX)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def wake_sleepers(typing_context, address):
    """Wake all who sleep on the word, which has been changed; in the lot, who sleeps on another one sleeps on."""

    def codegen(context, builder, signature, arguments):
        if WINDOWS:
            _call(builder, "WakeByAddressAll", _VOID, *arguments)
        elif HAS_FUTEX:
            _futex(builder, _FUTEX_WAKE, arguments[0], _int(_EVERYBODY), _int(0))
        else:
            _in_lot(builder, "pthread_mutex_lock", _MUTEX)
            _in_lot(builder, "pthread_cond_broadcast", _CONDITION)
            _in_lot(builder, "pthread_mutex_unlock", _MUTEX)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


# ---------------------------------------------------------------------------------------------------------- CPUs


@intrinsic
def current_cpu(typing_context):
    """The CPU this thread is on; -1 where it is not known."""

    def codegen(context, builder, signature, arguments):
        return builder.sext(_call(builder, "sched_getcpu", _I32), _I64) if LINUX else _int(-1)

    return types.int64(), codegen


def _affinity(builder: Any, name: str, mask_address: Any) -> Any:
    if not LINUX:
        return _int(-1)
    this_thread, size = _int(0, _I32), _int(8 * AFFINITY_WORDS)
    return builder.sext(_call(builder, name, _I32, this_thread, size, mask_address), _I64)


@intrinsic
def get_affinity(typing_context, mask_address):
    """Read the CPU mask of this thread into AFFINITY_WORDS words; negative where that fails."""

    def codegen(context, builder, signature, arguments):
        return _affinity(builder, "sched_getaffinity", arguments[0])

    return types.int64(types.int64), codegen


@intrinsic
def set_affinity(typing_context, mask_address):
    """Let this thread run on the CPUs of the mask only; negative where that fails."""

    def codegen(context, builder, signature, arguments):
        return _affinity(builder, "sched_setaffinity", arguments[0])

    return types.int64(types.int64), codegen


# ------------------------------------------------------------------------------------------------ floating point


def _read_control(builder: Any) -> Any:
    if ARM:
        return _assembly(builder, "mrs $0, fpcr", _I64, "=r")
    slot = cgutils.alloca_once(builder, _I32)
    _call(builder, "llvm.x86.sse.stmxcsr", _VOID, builder.bitcast(slot, ir.IntType(8).as_pointer()))
    return builder.zext(builder.load(slot), _I64)


def _write_control(builder: Any, value: Any) -> None:
    if ARM:
        _assembly(builder, "msr fpcr, $0", _VOID, "r,~{memory}", value)
        return
    slot = cgutils.alloca_once(builder, _I32)
    builder.store(builder.trunc(value, _I32), slot)
    _call(builder, "llvm.x86.sse.ldmxcsr", _VOID, builder.bitcast(slot, ir.IntType(8).as_pointer()))


@intrinsic
def flush_denormals(typing_context):
    """Make this thread flush denormals to zero, and return the state to restore.

    It holds for what is called in between; LLVM may move the arithmetic of the calling function itself across it.
    """

    def codegen(context, builder, signature, arguments):
        if not (X86 or ARM):
            return _int(0)
        old = _read_control(builder)
        _write_control(builder, builder.or_(old, _int(_FZ if ARM else _FTZ_DAZ)))
        return old

    return types.int64(), codegen


@intrinsic
def restore_float_state(typing_context, old):
    """Handle denormals as before :func:`flush_denormals`; flags that were raised in between stay raised."""

    def codegen(context, builder, signature, arguments):
        if X86 or ARM:
            bits = _FZ if ARM else _FTZ_DAZ
            kept = builder.and_(_read_control(builder), _int(~bits))
            _write_control(builder, builder.or_(kept, builder.and_(arguments[0], _int(bits))))
        return context.get_dummy_value()

    return types.void(types.int64), codegen
