"""What a training needs from the cluster, known before it begins."""

from __future__ import annotations

from cluster.gpus import Need
from training.nodes import read_nodes
from training.placement import place
from training.settings import TrainingSettings


def training_need(settings: TrainingSettings) -> Need:
    """The resources that the workers of a training need at once on the nodes that exist now."""
    placed = place(settings, read_nodes(), may_wait=True).settings
    worker = {"GPU": placed.gpus_per_worker, "CPU": placed.cpus_per_worker}
    count = placed.num_workers
    return Need(
        f"{count} training worker{'s' if count > 1 else ''} (training.num_workers)",
        (worker,) * count,
        "lower training.num_workers or set it to auto",
        "set training.gpus_per_worker: 0 to train on CPUs",
    )
