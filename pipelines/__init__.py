"""How reasoning paths are made and chosen. Imports `cluster` and `evaluation`."""
