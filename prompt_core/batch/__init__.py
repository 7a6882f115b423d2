"""Prediction over files: tables of any size are read in parts, answered part by part, and written so that nothing is lost."""

from prompt_core.batch.job import Predicted, predict_table

__all__ = ["Predicted", "predict_table"]
