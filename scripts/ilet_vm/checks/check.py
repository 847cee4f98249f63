"""A check: a name, a line about it, and the function that runs it."""

from collections.abc import Callable
from dataclasses import dataclass

from ..packages import MAIN_KERNEL


@dataclass(frozen=True)
class Check:
    """`run` gets a Bench; it raises CheckFailed or NotHere, or returns."""

    name: str
    summary: str
    run: Callable
    kernel: str = MAIN_KERNEL


def check(checks, name, summary, kernel=MAIN_KERNEL, **arguments):
    """Decorates a function as a check and appends it to `checks`; `arguments` go to the function."""

    def add(function):
        checks.append(Check(name, summary, lambda bench: function(bench, **arguments), kernel))
        return function

    return add
