"""CARE, competence-aware reward shaping for video MLLMs, as an extension of stock verl."""

__version__ = "0.1.0"
