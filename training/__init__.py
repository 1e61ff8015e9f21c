"""Fine-tuning of the model. Imports only `cluster`."""
