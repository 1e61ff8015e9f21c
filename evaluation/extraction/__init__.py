"""Extract the answer from a model's text and compare it with the truth; one file per type."""
