"""Hydra configs of verl_care, found as ``pkg://verl_care.conf``."""
