"""What a stored run tells: its state, the lineage of a path, and the tables behind a report.

Everything here only reads a run's folder. It takes no lock, so it also works while another command
holds the run, and it needs neither Ray nor a model.
"""
