"""What threads need from the machine: atomic words, pauses, futexes, affinity, and the floating-point control.

Each function works on int64 addresses and is compiled into its caller. Where a machine or a system lacks one, it does
nothing and says so through its result; :data:`HAS_FUTEX` tells which way of waiting there is. Code that depends on it
names :data:`VARIANT` among the meanings it is compiled under.
"""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic

intrinsic: Any = _intrinsic  # its type hints count the typing context among the arguments

X86 = platform.machine() in ("x86_64", "AMD64")
ARM = platform.machine() in ("aarch64", "arm64", "ARM64")
LINUX = sys.platform.startswith("linux")
WINDOWS = os.name == "nt"

_FUTEX_CALL = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), 0)
HAS_FUTEX = LINUX and _FUTEX_CALL != 0 and sys.maxsize > 2**32 and os.environ.get("DLCORE_NO_FUTEX") != "1"
VARIANT = "futex" if HAS_FUTEX else "portable"

CYCLES_PER_MICROSECOND = 3000  # of cycle_counter(); an x86 counts 2000 to 4000
AFFINITY_WORDS = 16  # of a CPU mask: 1024 CPUs

_I32, _I64, _VOID = ir.IntType(32), ir.IntType(64), ir.VoidType()
_FUTEX_WAIT, _FUTEX_WAKE = 128, 129  # of this process only
_FTZ_DAZ = 0x8040  # MXCSR: results flush to zero (15), operands that are denormal count as zero (6)
_FZ = 1 << 24  # FPCR: both

if WINDOWS:  # the compiled code finds its symbols among those of the C runtime, where this one is not
    import ctypes

    from llvmlite import binding

    _kernel32: Any = vars(ctypes)["windll"].kernel32
    binding.add_symbol("SwitchToThread", ctypes.cast(_kernel32.SwitchToThread, ctypes.c_void_p).value)


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


def _futex(builder: Any, operation: int, address: Any, *value_and_timeout: Any) -> Any:
    zero = _int(0)
    words = (_int(_FUTEX_CALL), address, _int(operation), *value_and_timeout, zero, zero)
    return _call(builder, "syscall", _I64, *words, var_arg=True)


@intrinsic
def futex_wait(typing_context, address, expected, timespec_address):
    """Sleep while the low half of the word is that of ``expected``, until a wake, a signal or the time-out."""

    def codegen(context, builder, signature, arguments):
        return _futex(builder, _FUTEX_WAIT, *arguments) if HAS_FUTEX else _int(-1)

    return types.int64(types.int64, types.int64, types.int64), codegen


@intrinsic
def futex_wake(typing_context, address, count):
    """Wake up to ``count`` sleepers on the word and return how many there were."""

    def codegen(context, builder, signature, arguments):
        return _futex(builder, _FUTEX_WAKE, *arguments, _int(0)) if HAS_FUTEX else _int(-1)

    return types.int64(types.int64, types.int64), codegen


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
