import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest


@pytest.fixture
def cpu_limit() -> Iterator[Callable]:
    """`with cpu_limit(what):` fails where the block takes 2 seconds of CPU time, which no load on the machine changes.

    Linear work on these inputs takes milliseconds, quadratic work minutes.
    """

    def stop(*_):
        raise TimeoutError("2 s of CPU time")

    previous = signal.signal(signal.SIGVTALRM, stop)

    @contextmanager
    def cpu_limit(what: object):
        signal.setitimer(signal.ITIMER_VIRTUAL, 2.0)
        try:
            yield
        except TimeoutError:
            pytest.fail(f"no end within 2 s of CPU time: {what!r:.200}")
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    yield cpu_limit
    signal.signal(signal.SIGVTALRM, previous)
