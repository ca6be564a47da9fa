"""What an error says of a name that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

_CLOSE = 0.6  # of difflib's ratio, where 1 is the same word
_SUGGESTED, _LISTED = 3, 12


def unknown(kind: str, name: Any, known: Iterable[str], others: Iterable[str] = ()) -> str:
    """``unknown optimizer 'adm'; did you mean 'adam'?``, or a list of ``known`` where none is close.

    ``others`` are aliases, which are suggested and not listed.

    >>> unknown("activation", "Rleu", ["linear", "relu", "tanh"])
    "unknown activation 'Rleu'; did you mean 'relu'?"
    >>> unknown("activation", "cube", ["linear", "relu", "tanh"])
    "unknown activation 'cube'; known: linear, relu, tanh"
    """
    names = sorted(set(known))
    text = f"unknown {kind} {name!r}; "
    close = _close(name, [*names, *sorted(set(others) - set(names))]) if isinstance(name, str) and name else []
    if close:
        *first, last = map(repr, close)
        return f"{text}did you mean {', '.join(first)}{' or ' if first else ''}{last}?"
    if len(names) <= _LISTED:
        return f"{text}known: {', '.join(names)}"
    return f"{text}docs/catalogue.md lists the {len(names)} that are known, from {names[0]!r} to {names[-1]!r}"


def _close(name: str, names: list[str]) -> list[str]:
    """The name that is most alike; where none is, those that contain ``name``."""
    folded: dict[str, str] = {}
    for each in names:
        folded.setdefault(each.lower(), each)
    wanted = name.lower()
    alike = difflib.get_close_matches(wanted, folded, n=1, cutoff=_CLOSE)
    contain = [each for each in folded if wanted in each][:_SUGGESTED] if len(wanted) > 1 else []
    return [folded[each] for each in alike or contain]
