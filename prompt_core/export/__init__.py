"""Exports: published prompts in the form that another stack reads."""

from prompt_core.export.export import export
from prompt_core.export.package import Published

__all__ = ["Published", "export"]
