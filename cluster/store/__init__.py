"""The run folder: files, steps with manifests, the ledger of rows, one holder at a time."""
