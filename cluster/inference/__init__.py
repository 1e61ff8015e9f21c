"""The engine pool: an engine protocol, vLLM behind it, and the schedule of its work."""
