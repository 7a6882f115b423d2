"""A plain job that uses published prompts: no Dagster, `prompt_core` alone.

python examples/consumer/batch_job.py --name support_intent examples/consumer/messages_to_route.csv routed.csv

A table of any size takes the same memory, and a job that was killed goes on when it is started again.
"""

import argparse
import sys
from pathlib import Path

from prompt_core import PromptmillError, PromptStore
from prompt_core.batch import predict_table
from prompt_core.shelf import Shelf


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer every row of a table with a published prompt, or with the one that it names.")
    parser.add_argument("--store", default=".promptmill/store", help="folder or URL of the prompt store")
    parser.add_argument("--name", help="the prompt's name; the version in production is used")
    parser.add_argument("--prompt-column", help="the column that names a prompt per row")
    parser.add_argument("input", type=Path, help="CSV, JSONL or Parquet with the fields of the prompt's template as columns")
    parser.add_argument("output", type=Path, help="the same table with the columns `prediction`, `prediction_score` and what made them")
    given = parser.parse_args()
    try:
        done = predict_table(Shelf(PromptStore(given.store)), given.name, given.input, given.output, given.prompt_column)
    except PromptmillError as error:
        sys.exit(f"Error: {error}")
    print(f"{done.rows} rows -> {given.output}" + (f", {done.rejected} -> {done.rejected_path}" if done.rejected else ""))
    if done.rejected and not done.rows:
        sys.exit(2)  # nothing was answered: whoever runs the job has to hear of it


if __name__ == "__main__":
    main()
