"""Labelled examples: read, clean, split once by content, and prove that nothing leaks between the sides."""

from __future__ import annotations

from prompt_core.data.clean import CleaningReport, clean
from prompt_core.data.fingerprint import Fingerprint, data_files, fingerprint
from prompt_core.data.leakage import Leakage, find_leakage, remove_leakage
from prompt_core.data.read import read_examples
from prompt_core.data.split import Splits, outside_test, prepare, split, unlabelled_inputs

__all__ = [
    "CleaningReport",
    "Fingerprint",
    "Leakage",
    "Splits",
    "clean",
    "data_files",
    "find_leakage",
    "fingerprint",
    "outside_test",
    "prepare",
    "read_examples",
    "remove_leakage",
    "split",
    "unlabelled_inputs",
]
