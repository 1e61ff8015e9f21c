"""Reads rows of question files, strictly: nothing is dropped or altered in silence."""
