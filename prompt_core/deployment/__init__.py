"""`promptmill init`: a new deployment as a folder of its own. `files/` is what it gets; the code location comes beside it."""

from __future__ import annotations

from prompt_core.deployment.create import create_deployment

__all__ = ["create_deployment"]
