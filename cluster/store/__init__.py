"""The run folder: files, steps with manifests, the ledger of rows, and the holder of a run."""
