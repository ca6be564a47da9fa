"""Instructions that may overwrite what they read, where nobody reads that again.

Batch norm followed by an activation would else write two arrays: the second has left the cache since the step before,
and memory for it has to be found. Dense layers keep no second array for their activation by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .instructions import Instruction

if TYPE_CHECKING:
    from .program import Buffer

_BY_ELEMENTS = ("activation_forward", "dropout")  # what their first operand is, the one that they write may be


def overwriting(instructions: Sequence[Instruction]) -> tuple[list[Instruction], dict[Buffer, Buffer]]:
    """``instructions`` that overwrite what they can, and for each buffer that is not needed any more the one instead.

    What an activation read is not needed where its derivative is that of what it wrote. Rows that are gathered stay:
    a mini-batch may be read where the caller has it.
    """
    result = list(instructions)
    instead: dict[Buffer, Buffer] = {}
    for k, one in enumerate(instructions):
        if one.op.name not in _BY_ELEMENTS:
            continue
        source, (target,) = result[k].operands[0], _written(result[k])
        if _is_free(result, k, source) and not any(target in other.operands for other in result[:k]):
            instead[target] = source
            result = [_with(other, target, source) for other in result]
    return result, instead


def _is_free(instructions: Sequence[Instruction], k: int, buffer: Buffer) -> bool:
    """Whether the list itself writes ``buffer`` before instruction ``k``, and reads it last there."""
    if buffer.region != "work":  # what is kept from step to step
        return False
    writers = [one for one in instructions[:k] if buffer in _written(one)]
    if not writers or any(one.op.name.startswith("gather_") for one in writers):
        return False
    return not any(buffer in _needed(one) for one in instructions[k + 1 :])


def _written(instruction: Instruction) -> list[Buffer]:
    pairs = zip(instruction.op.operands, instruction.operands, strict=True)
    return [operand for spec, operand in pairs if spec.access != "read"]


def _needed(instruction: Instruction) -> list[Buffer]:
    """The operands but for a ``z`` that a derivative does not read."""
    if instruction.op.name == "activation_backward" and not instruction.rule.uses_input:
        dy, _, *others = instruction.operands
        return [dy, *others]
    return list(instruction.operands)


def _with(instruction: Instruction, target: Buffer, source: Buffer) -> Instruction:
    """The instruction with ``source`` in the place of ``target``."""
    if target not in instruction.operands:
        return instruction
    operands = [source if operand is target else operand for operand in instruction.operands]
    return Instruction(instruction.op, operands, instruction.rule, instruction.scalars)
