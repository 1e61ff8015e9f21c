"""What is known before a run: its steps, its cost, and what would fail later."""
