"""People judge the reasoning of paths: the blinded sheet, and what is read back from it."""
