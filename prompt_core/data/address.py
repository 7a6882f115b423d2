"""The address of a file as messages and metadata show it: without what gives access to it."""

from __future__ import annotations

from urllib.parse import urlsplit


def hide_access(text: str, address: str) -> str:
    """A text that quotes an address, without the user and the query of that URL: passwords and signatures stand there."""
    if "://" not in address:
        return text
    url = urlsplit(address)
    for secret in (f"?{url.query}", f"{url.netloc.rpartition('@')[0]}@"):
        if len(secret) > 1:
            text = text.replace(secret, "?..." if secret[0] == "?" else "...@")
    return text
