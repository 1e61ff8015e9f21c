"""The definition of a correct answer, and the scores of a model. Imports only `cluster`."""
