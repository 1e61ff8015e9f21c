"""Models: where they come from, their chat templates, and proof of which weights are served."""
