"""What a thread knows while it runs a table: the words of its context; and how threads take pieces of others' shares.

Contexts of the threads of a job lie one behind the other.
"""

from __future__ import annotations

from .machine import atomic_add, store_release

CONTEXT = 16  # words, a thread's own two cache lines
(
    ROWS, START, INDEX, THREAD, THREADS, FIRST, LAST, CHUNK, CHUNK_FIRST, CHUNK_LAST, CHUNKS, SCRATCH, CONTROL, TAKEN,
) = range(14)  # fmt: skip


def take_piece(context, owner, pieces, thread, threads):
    """The number of the next of ``pieces`` pieces of ``owner``'s share that nobody has taken; -1 when all are.

    ``context`` is the address of the context of ``thread``. Every thread must ask for the pieces of every owner until
    there are none: the last to hear so leaves the count at 0, for the next step.
    """
    count = context + 8 * (CONTEXT * (owner - thread) + TAKEN)
    piece = atomic_add(count, 1)
    if piece < pieces:
        return piece
    if piece == pieces + threads - 1:
        store_release(count, 0)
    return -1
