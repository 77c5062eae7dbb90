"""What all pages share: a head with one style, tables, and figures inside the page. No script, nothing to load."""

from __future__ import annotations

import base64
import io
from typing import Any

_BASE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>
  :root { color-scheme: light; }
  body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto; padding: 1rem;
         max-width: 76rem; overflow-wrap: anywhere; }
  h1 { font-size: 1.4rem; margin: 0 0 .5rem; }
  h2 { font-size: 1.1rem; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; font-size: .9rem; }
  th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
  th:first-child, td:first-child { text-align: left; }
  .figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem;
             margin-top: 1rem; }
  img { width: 100%; height: auto; }
  p { max-width: 46rem; }
{% block style %}{% endblock %}</style>
</head>
<body>
{% block body %}{% endblock %}</body>
</html>
"""

_PARTS = """{% macro table(heads, rows, caption="") %}<div class="scroll"><table>\
{% if caption %}<caption>{{ caption }}</caption>{% endif %}
<thead><tr>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endmacro %}
{% macro figure(data, alt) %}<img src="data:image/png;base64,{{ data }}" alt="{{ alt }}">
{% endmacro %}"""


def render(template: str, **values: Any) -> str:
    """A page as text; every value is escaped, and one that the template lacks is an error.

    Args:
        template: blocks ``style`` and ``body``; in them the macros ``parts.table`` and ``parts.figure``.
        values: of the template; ``title`` is the page's.
    """
    import jinja2

    loader = jinja2.DictLoader({"base": _BASE, "parts": _PARTS})
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, loader=loader)
    page = '{% extends "base" %}{% import "parts" as parts %}' + template
    return environment.from_string(page).render(**values)


def to_png(figure: Any, dpi: int = 130) -> bytes:
    """A matplotlib figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png")
    return buffer.getvalue()


def to_base64(png: bytes) -> str:
    """A PNG file as ``parts.figure`` takes it."""
    return base64.b64encode(png).decode()
