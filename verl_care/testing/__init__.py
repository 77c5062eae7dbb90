"""Tools to test a reward manager or a trainer on a real TransferQueue, without a GPU or a model.

verl ships no mock worker group of its own; its tests put a ``MagicMock`` in the place. What is here:

- ``make_group``, ``put_rows``, ``put_groups``, ``add_padding``: rows as verl's agent loop writes them;
- ``MockWorkerGroup``: answers ``compute_log_prob`` and ``update_actor`` as an actor's worker group does;
- ``build_config``, ``build_trainer``, ``run_update``: one of verl's V1 trainers around them, through one update;
- ``hostile_responses``: responses that a reward function must survive;
- ``verl_care.testing.plugin``: pytest fixtures for Ray and TransferQueue.

Importing this package imports neither torch nor verl nor ray; each name does when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verl_care.testing.hostile import hostile_responses
    from verl_care.testing.rows import Row, add_padding, make_group, put_groups, put_rows, read_rows
    from verl_care.testing.trainer import Update, build_config, build_trainer, run_update
    from verl_care.testing.worker_group import ByteTokenizer, MockWorkerGroup

_HOME = {
    "Row": "rows",
    "add_padding": "rows",
    "make_group": "rows",
    "hostile_responses": "hostile",
    "put_groups": "rows",
    "put_rows": "rows",
    "read_rows": "rows",
    "Update": "trainer",
    "build_config": "trainer",
    "build_trainer": "trainer",
    "run_update": "trainer",
    "ByteTokenizer": "worker_group",
    "MockWorkerGroup": "worker_group",
}

__all__ = [
    "ByteTokenizer",
    "MockWorkerGroup",
    "Row",
    "Update",
    "add_padding",
    "build_config",
    "build_trainer",
    "hostile_responses",
    "make_group",
    "put_groups",
    "put_rows",
    "read_rows",
    "run_update",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
