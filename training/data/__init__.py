"""Turns examples into the batches that a worker trains on."""
