"""Ticks of the sensors of a deployment, as the daemon makes them."""

import dagster as dg

from pipelines.sensors import build_sensors
from pipelines.settings import Settings


def tick(settings: Settings, instance: dg.DagsterInstance, name: str, cursor: str | None = None) -> dg.SensorResult | dg.SkipReason:
    """One evaluation of a sensor; partitions are added and retired as the daemon would."""
    sensor = next(sensor for sensor in build_sensors(settings.tasks_dir, settings.store_url, on=False) if sensor.name == name)
    with dg.build_sensor_context(instance, cursor=cursor) as context:
        found = sensor(context)
    for request in found.dynamic_partitions_requests or () if isinstance(found, dg.SensorResult) else ():
        if isinstance(request, dg.AddDynamicPartitionsRequest):
            instance.add_dynamic_partitions("tasks", request.partition_keys)
        else:
            for key in request.partition_keys:
                instance.delete_dynamic_partition("tasks", key)
    return found


def launched(found: dg.SensorResult | dg.SkipReason) -> list[str | None]:
    """The tasks of the runs of one task each that a tick launches; None for a run of several."""
    assert isinstance(found, dg.SensorResult)
    return [request.partition_key for request in found.run_requests or ()]
