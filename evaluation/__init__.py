"""What correct means, and how good a model is. Imports `cluster` only."""
