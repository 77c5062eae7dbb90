"""Reward shaping rules, one published rule a module, behind ``get_rule`` and ``list_rules``. Pure."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from verl_care.shaping.base import Rule, Shaped, ShapingBatch, registered_rules

__all__ = ["Rule", "Shaped", "ShapingBatch", "get_rule", "get_rule_class", "list_rules"]


def _import_rules() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def list_rules() -> list[str]:
    """Names of all rules, sorted."""
    _import_rules()
    return sorted(registered_rules())


def get_rule_class(name: str) -> type[Rule]:
    """The class of a rule.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    _import_rules()
    if name not in registered_rules():
        raise ValueError(f"no rule {name!r}; there are {', '.join(list_rules())}")
    return registered_rules()[name]


def get_rule(name: str, **constants: Any) -> Rule:
    """A rule with these constants, ready to be called as ``rule(batch, state)``.

    Raises:
        ValueError: an unknown rule, or a constant that the rule does not have, lacks, or refuses.
    """
    cls = get_rule_class(name)
    try:
        return cls.from_constants(**constants)
    except (TypeError, ValueError) as error:
        raise ValueError(f"rule {name}: {error}") from None
