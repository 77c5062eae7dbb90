"""``verl-care rules``: what the shaping rules do, and the constants of one of them."""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from verl_care.shaping import get_rule_class, list_rules
from verl_care.shaping.base import Rule


def describe_rule(name: str) -> dict[str, Any]:
    """Properties, needs, constants and source of a rule, in JSON types."""
    cls = get_rule_class(name)
    properties = cls.properties
    return {
        "rule": name,
        "summary": (inspect.getdoc(sys.modules[cls.__module__]) or "").split(" Pure")[0],
        "formula": inspect.getdoc(cls),
        "ranks_wrong_by_length": properties.ranks_wrong_by_length,
        "signal_when_all_right": properties.signal_when_all_right,
        "right_below_wrong": properties.right_below_wrong,
        "stateful": cls.initial_state is not Rule.initial_state,
        "needs": list(properties.needs),
        "required": [c["name"] for c in describe_constants(cls) if c["required"]],
        "constants": describe_constants(cls),
        "source": cls.source,
    }


def describe_constants(cls: type) -> list[dict[str, Any]]:
    """Name, default and meaning of each constant; those of a nested config stand in place of it."""
    described: list[dict[str, Any]] = []
    docs = _field_docs(cls)
    for constant in fields(cls):
        default = _default(constant)
        if is_dataclass(default):
            prefix = "" if constant.name == "config" else f"{constant.name}."
            described += [{**row, "name": prefix + row["name"]} for row in describe_constants(type(default))]
            # A nested value can differ from its class's default, or the class can have none.
            for row in described:
                if row["name"].startswith(prefix) and hasattr(default, row["name"][len(prefix) :]):
                    row["default"], row["required"] = getattr(default, row["name"][len(prefix) :]), False
            continue
        described.append(
            {
                "name": constant.name,
                "default": None if default is MISSING else default,
                "required": default is MISSING,
                "meaning": docs.get(constant.name, ""),
            }
        )
    return described


def _default(constant: Field) -> Any:
    if constant.default_factory is not MISSING:
        return constant.default_factory()
    return constant.default


def _field_docs(cls: type) -> dict[str, str]:
    """The string under each field, for the class and its bases."""
    docs: dict[str, str] = {}
    for base in reversed([base for base in cls.__mro__ if is_dataclass(base)]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for statement, following in zip(definition.body, definition.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
            ):
                docs[statement.target.id] = inspect.cleandoc(str(following.value.value)).replace("\n", " ")
    return docs


def main(name: str | None = None, *, as_json: bool = False) -> int:
    """Prints the table of all rules, or the constants of one.

    Returns:
        Exit status: 0, or 1 for an unknown rule.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    try:
        described = [describe_rule(rule) for rule in ([name] if name else list_rules())]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(described[0] if name else described))
        return 0
    console = Console()
    if not console.is_terminal:
        console.width = 120
    if name:
        (rule,) = described
        console.print(f"{rule['rule']}: {rule['summary']}\n{rule['formula']}\n", markup=False, highlight=False)
        console.print(f"Source: {rule['source']}", markup=False, highlight=False)
        if rule["needs"]:
            console.print(f"Needs for each response: {', '.join(rule['needs'])}", markup=False)
        table = Table(title=f"care.{'shaping' if name == 'care' else f'rules.{name}'}.…", box=SIMPLE_HEAD)
        for head in ("constant", "default", "meaning"):
            table.add_column(head)
        for row in rule["constants"]:
            table.add_row(row["name"], "required" if row["required"] else str(row["default"]), row["meaning"])
        console.print(table)
        return 0
    table = Table(
        title="Shaping rules, by default constants",
        box=SIMPLE_HEAD,
        caption="One rule with its formula and constants: verl-care rules NAME",
    )
    table.add_column("rule", no_wrap=True)
    for head in ("ranks wrong\nby length", "signal when\nall right", "right may fall\nbelow wrong", "keeps\nstate"):
        table.add_column(head, justify="center")
    table.add_column("needs")
    for rule in described:
        marks = [rule["ranks_wrong_by_length"], rule["signal_when_all_right"]]
        marks += [rule["right_below_wrong"], rule["stateful"]]
        needs = [f"extra.{column}" for column in rule["needs"]] + [f"constant {c}" for c in rule["required"]]
        table.add_row(rule["rule"], *("yes" if mark else "–" for mark in marks), ", ".join(needs))
    console.print(table)
    return 0
