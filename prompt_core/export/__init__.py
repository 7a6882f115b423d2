"""Exports: a published prompt in the form that another stack reads."""
