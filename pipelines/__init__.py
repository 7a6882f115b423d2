"""The Dagster code location: prompt_core's steps as assets, one partition per task file. Thin on purpose; the work is in prompt_core."""
