"""A lock around imports at first use.

Reward workers score in threads. Two that import packages which import each other, as ``jiwer`` and
``rapidfuzz.distance``, end in a deadlock that Python breaks with an error, or find a module half made; the response
that was scored would count as one in error.
"""

import threading

IMPORTING = threading.RLock()
"""Held while a function of this package imports a library."""
