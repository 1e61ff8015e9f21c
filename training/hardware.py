"""What a training needs of the cluster, known before it begins."""

from __future__ import annotations

from cluster.gpus import Need
from training.settings import TrainingSettings


def training_need(settings: TrainingSettings) -> Need:
    """What the workers of a training need at the same moment."""
    worker = {"GPU": settings.gpus_per_worker, "CPU": settings.cpus_per_worker}
    return Need(
        f"{settings.num_workers} training workers (training.num_workers)",
        (worker,) * settings.num_workers,
        "lower training.num_workers",
        "set training.gpus_per_worker: 0 to train on CPUs",
    )
