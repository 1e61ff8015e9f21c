"""The questions of a run: where they come from, how they are split, what overlaps."""
