"""Extraction: entities as character spans and BIO tags, and JSON records that fit a schema."""
