"""The content digest of a frame of examples."""

from __future__ import annotations

import hashlib
import json

import polars as pl


def frame_digest(frame: pl.DataFrame) -> str:
    """SHA-256 (64 hex characters) over columns and rows, whatever the order of rows in their source."""
    columns = sorted(frame.columns)
    return hashlib.sha256(json.dumps([columns, sorted(frame.select(columns).rows())]).encode()).hexdigest()
