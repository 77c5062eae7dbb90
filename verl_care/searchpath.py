"""Makes Hydra find ``pkg://verl_care.conf``, over two channels.

Hydra by itself discovers ``hydra_plugins.verl_care_searchpath``, a member of a namespace package. Another distribution
that ships a regular ``hydra_plugins`` package hides that namespace; therefore the verl plugin calls :func:`register`
too. Whichever channel comes second finds our entry in the search path and adds nothing.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

PROVIDER = "verl-care"
"""Name of our entry in Hydra's search path, as ``--info searchpath`` prints it."""

PATH = "pkg://verl_care.conf"
"""The entry itself."""


def append_to(search_path: Any) -> None:
    """Appends our entry to a Hydra ``ConfigSearchPath``, unless it is there already."""
    from hydra.core.config_search_path import SearchPathQuery

    if search_path.find_first_match(SearchPathQuery(provider=PROVIDER, path=PATH)) < 0:
        search_path.append(provider=PROVIDER, path=PATH)


def register() -> None:
    """Registers our search path with Hydra: now where Hydra's plugins are imported, otherwise as soon as they are.

    ``import verl`` (0.9.1) does not import Hydra, and most of a run's processes never compose a config; so neither does
    this function.
    """
    import wrapt

    wrapt.register_post_import_hook(_register_class, "hydra.core.plugins")


def _register_class(hydra_core_plugins: ModuleType) -> None:
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class VerlCareSearchPath(SearchPathPlugin):
        def manipulate_search_path(self, search_path: Any) -> None:
            append_to(search_path)

    hydra_core_plugins.Plugins.instance().register(VerlCareSearchPath)
