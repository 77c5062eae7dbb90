"""How a command ends: 0; 1 and one line on standard error where the work failed; 130 after Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable


def run_command(
    work: Callable[[], None],
    *errors: type[Exception],
    interrupted: str = "interrupted; the same command goes on from here",
) -> int:
    """Does a command's work and gives its exit status.

    Args:
        work: what the command does; prints its results.
        errors: expected ones besides ``OSError``, ``ImportError`` and ``ValueError``; others are faults of the program
            and keep their traceback.
        interrupted: what is said after Ctrl-C.
    """
    expected: tuple[type[Exception], ...] = (OSError, ImportError, ValueError, *errors)
    try:
        work()
    except expected as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    return 0
