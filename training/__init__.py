"""How the model is tuned. Imports `cluster` only."""
