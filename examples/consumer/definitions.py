"""A code location of another team: it uses published prompts and knows of Promptmill only the store and the key `published_prompt`.

`PROMPTMILL_STORE` says where the prompts are, `CONSUMER_OUTPUT` where the results go.
"""

import os
from pathlib import Path

import dagster as dg
import polars as pl

from prompt_core import PromptStore
from prompt_core.batch import predict_table
from prompt_core.shelf import Shelf

HERE = Path(__file__).resolve().parent


class SupportDesk(dg.ConfigurableResource):
    """Where the desk's prompts come from and its results go."""

    store: str
    output: str

    def process(self, prompt_name: str, messages: str, result: str) -> dg.MaterializeResult:
        """Answer a file of messages with the prompt that is in production now, and write the answers beside them."""
        shelf = Shelf(PromptStore(self.store))
        prompt = shelf.find(prompt_name)
        path = Path(self.output) / f"{result}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        done = predict_table(shelf, prompt.address, HERE / messages, path)
        answered = pl.read_parquet(path)
        columns = [dg.TableColumn(name) for name in answered.columns]
        shown = [dg.TableRecord(row) for row in answered.head(5).rows(named=True)]
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": done.rows,
                "rejected": done.rejected,
                "prompt": prompt.address,
                "digest": prompt.digest,
                "path": dg.MetadataValue.path(str(path)),
                "sample": dg.MetadataValue.table(shown, dg.TableSchema(columns)),
            }
        )


def published(prompt_name: str) -> dg.AssetDep:
    """One prompt among the partitions of `published_prompt`."""
    return dg.AssetDep("published_prompt", partition_mapping=dg.SpecificPartitionsPartitionMapping([prompt_name]))


@dg.asset(
    group_name="support_desk",
    kinds={"parquet"},
    owners=["team:support-desk"],
    code_version="1",
    deps=[published("support_intent")],
    automation_condition=dg.AutomationCondition.eager(),  # a newly published prompt is used at once
)
def routed_messages(desk: SupportDesk) -> dg.MaterializeResult:
    """Today's messages with the intent that the published prompt `support_intent` sees in them."""
    return desk.process("support_intent", "messages_to_route.csv", "routed_messages")


@dg.asset(
    group_name="support_desk",
    kinds={"parquet"},
    owners=["team:support-desk"],
    code_version="1",
    deps=[published("support_reply")],
    automation_condition=dg.AutomationCondition.eager(),
)
def drafted_replies(desk: SupportDesk) -> dg.MaterializeResult:
    """Today's messages with the reply that the published prompt `support_reply` drafts from the facts."""
    return desk.process("support_reply", "messages_to_answer.csv", "drafted_replies")


_STATE = HERE.parents[1] / ".promptmill"

defs = dg.Definitions(
    assets=[routed_messages, drafted_replies],
    # The default sensor for automation conditions waits until somebody switches it on.
    sensors=[
        dg.AutomationConditionSensorDefinition(
            "use_what_is_published", target=dg.AssetSelection.all(), default_status=dg.DefaultSensorStatus.RUNNING
        )
    ],
    resources={
        "desk": SupportDesk(
            store=os.environ.get("PROMPTMILL_STORE") or str(_STATE / "store"),
            output=os.environ.get("CONSUMER_OUTPUT") or str(_STATE / "consumer"),
        )
    },
    executor=dg.in_process_executor,
)
