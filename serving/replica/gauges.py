"""What a replica's metrics show of its present state, read anew at each scrape."""

from __future__ import annotations

from ken_core import ResidentModel
from serving.admission import Admission
from serving.engine.engine import Engine
from serving.generation.generator import Generator
from serving.placement.plan import Placement
from serving.replica.placing import Placing
from serving.tasks import TaskTable, TaskWatch
from serving.telemetry.adapters import Adapters
from serving.telemetry.metrics import Metrics
from serving.tiers.cache import DeltaCache
from serving.tiers.device import DeviceTiers


def add_gauges(
    metrics: Metrics,
    resident: ResidentModel,
    cache: DeltaCache,
    engine: Engine,
    admission: Admission,
    watch: TaskWatch,
) -> None:
    """Add gauges of a replica's parts to its metrics."""

    def tier_bytes() -> dict[str, float]:
        return {
            "disk": cache.files.nbytes,
            "host": cache.host_nbytes,
            "packed": engine.tiers.packed_nbytes,
            "materialised": engine.tiers.materialised_nbytes,
        }

    metrics.resident_bytes.set(resident.nbytes)
    metrics.gauge("ken_queue_rows", "Inputs waiting for a forward pass", lambda: engine.waiting)
    metrics.gauge(
        "ken_loading_rows",
        "Inputs waiting for their task to be on the device, or for their turn to be encoded",
        lambda: admission.preparing,
    )
    metrics.gauge("ken_requests_in_flight", "Requests accepted and not answered", lambda: admission.requests)
    metrics.gauge("ken_merges", "Merges of tasks, asked for by requests, that are held", lambda: len(cache.merges))
    metrics.gauge(
        "ken_base_file_changed",
        "Whether the base's file was found to hold other weights than the resident ones",
        lambda: resident.checkpoint.files.trouble is not None,
    )
    metrics.gauge(
        "ken_store_history_changed",
        "Whether the store was emptied, restored or exchanged, so that the replica keeps what it knew",
        lambda: watch.other_history,
    )
    metrics.gauge(
        "ken_disk_up",
        "Whether fetched deltas are kept on disk; 0: the disk takes no files, and they are read from memory",
        lambda: cache.files.takes_deltas(),
    )
    metrics.gauge_by("ken_cache_bytes", "Bytes of deltas by tier", "tier", tier_bytes)


def add_generation_gauges(metrics: Metrics, generator: Generator) -> None:
    """Add gauges of the texts that are being generated."""
    metrics.gauge("ken_running_texts", "Texts being generated", lambda: generator.running)
    metrics.gauge("ken_waiting_texts", "Texts waiting for room for their keys and values", lambda: generator.waiting)
    metrics.gauge("ken_kv_bytes", "Bytes of keys and values, as reserved", lambda: generator.used_bytes)
    metrics.gauge("ken_kv_budget_bytes", "Bytes that keys and values may take", lambda: generator.budget_bytes)


def add_placement_gauges(
    metrics: Metrics, placing: Placing, tiers: DeviceTiers, table: TaskTable, most_names: int
) -> None:
    """Add gauges of the placement of tasks, and of the tasks on the device.

    Args:
        most_names: how many tasks one gauge names, those asked for most.
    """

    def adapters() -> Adapters:
        task_of = {digest: task for task, digest in table.live.items()} if table.loaded else {}
        held = tiers.by_use()
        mean = sum(one.nbytes for one in held) // max(1, len(held))
        return Adapters(
            max(len(held), placing.room // mean if mean else most_names),
            sorted(task_of[digest] for digest in tiers.awaited() if digest in task_of)[:most_names],
            sorted([task_of[one.digest] for one in held if one.digest in task_of][:most_names]),  # in a stable order
        )

    metrics.gauge(
        "ken_placement_epoch",
        "Epoch of the placement of tasks that is followed; 0: none is",
        lambda: (placing.current or Placement()).epoch,
    )
    metrics.gauge(
        "ken_placement_moves", "Homes that tasks got since the first placement, new tasks left out",
        lambda: (placing.current or Placement()).moves,
    )  # fmt: skip
    metrics.gauge(
        "ken_placement_enforced",
        "Whether requests go by the placement: a proxy says so, or there is one replica alone",
        lambda: placing.enforced,
    )
    metrics.adapters(adapters)
