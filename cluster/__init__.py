"""What the machine is, and where a run keeps its things. Imports nothing of ours."""
