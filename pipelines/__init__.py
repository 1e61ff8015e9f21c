"""The generation and selection of reasoning paths. Imports `cluster` and `evaluation`."""
