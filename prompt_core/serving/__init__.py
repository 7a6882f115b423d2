"""The HTTP server: many prompts on the frozen models that they share, behind a plain and an OpenAI-compatible interface."""

from prompt_core.serving.app import Limits, create_app

__all__ = ["Limits", "create_app"]
