"""The Dagster code location: prompt_core's steps as assets, one partition per task file. Thin on purpose; the work is in prompt_core."""

import warnings

import dagster as dg

# Partitioned asset checks, which the gate needs, are marked as a preview; backfill policies and parts that Dagster itself uses as beta.
for category in (dg.PreviewWarning, dg.BetaWarning):
    warnings.filterwarnings("ignore", category=category)
