"""Hydra search path plugin of verl_care; see ``verl_care.searchpath``.

``hydra_plugins`` is a namespace package shared by all distributions: it must not get an ``__init__.py`` here.
"""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from verl_care.searchpath import append_to


class VerlCareSearchPath(SearchPathPlugin):
    """Appends ``pkg://verl_care.conf`` to the search path of every Hydra application."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        append_to(search_path)
