"""From examples to the batches that a worker trains on."""
