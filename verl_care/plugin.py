"""Entry point of the group ``verl.plugins``: what ``import verl`` runs in every process.

Nothing heavy is imported here. Each adapter registers itself when verl imports the registry it belongs to, through
wrapt's post-import hooks, so that ``import verl`` stays as cheap as without the plugin. An error in a hook rises from
the import that fired it. An error in this module itself would reach the user as nothing (verl logs it at DEBUG), so it
is printed.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from importlib.metadata import version

SUPPORTED_VERL = "0.9.1"

ACCEPT_VERL = "VERL_CARE_ACCEPT_VERL"
"""Environment variable with one more version to load under, for trying the tests on it (``make test-verl``)."""

_ADAPTERS = {
    "verl.trainer.ppo.v1": "verl_care.workers.trainer",
    "verl.experimental.reward_loop.reward_manager": "verl_care.reward_manager",
}
"""Module of verl that holds a registry -> our module that registers there when imported."""


def _check_version() -> None:
    found = version("verl")
    if found not in (SUPPORTED_VERL, os.environ.get(ACCEPT_VERL)):
        raise RuntimeError(
            f"verl_care supports verl {SUPPORTED_VERL}; found {found}. Install verl=={SUPPORTED_VERL}, "
            "or uninstall verl-care to train without it."
        )


def _importer(module: str) -> Callable[[object], None]:
    def import_adapter(_: object) -> None:
        _check_version()
        importlib.import_module(module)

    return import_adapter


def register() -> None:
    """Hooks every adapter onto the registry it belongs to; calling it twice changes nothing."""
    import wrapt

    from verl_care import searchpath
    from verl_care.workers import cpu

    for registry, adapter in _ADAPTERS.items():
        wrapt.register_post_import_hook(_importer(adapter), registry)
    searchpath.register()
    cpu.register()


try:
    register()
except Exception as error:
    print(f"verl_care: the plugin failed to load, nothing of it is registered: {error!r}", file=sys.stderr, flush=True)
    raise
