"""The questions of a run: their sources, their splits, and their overlaps."""
