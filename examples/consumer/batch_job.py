"""A plain job that uses a published prompt: no Dagster, `prompt_core` alone.

python examples/consumer/batch_job.py --name support_intent examples/consumer/messages_to_route.csv routed.csv
"""

import argparse
import sys
from pathlib import Path

import polars as pl

from prompt_core import PromptmillError, PromptStore
from prompt_core.data.table import check_writable, read_table, write_table


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer every row of a table with a published prompt.")
    parser.add_argument("--store", default=".promptmill/store", help="folder or URL of the prompt store")
    parser.add_argument("--name", required=True, help="the prompt's name; the version in production is used")
    parser.add_argument("input", type=Path, help="CSV, JSONL or Parquet with the fields of the prompt's template as columns")
    parser.add_argument("output", type=Path, help="the same table with the column `prediction`")
    given = parser.parse_args()
    try:
        check_writable(given.output)
        table = read_table(given.input)
        prompt = PromptStore(given.store).get(given.name)
        predictions = prompt.predict(table.rows(named=True))
        write_table(table.with_columns(pl.Series("prediction", predictions)), given.output)
    except PromptmillError as error:
        sys.exit(f"Error: {error}")
    print(f"{len(table)} rows -> {given.output} by {prompt.name} {prompt.digest[:12]}")


if __name__ == "__main__":
    main()
