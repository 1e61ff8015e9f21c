"""How an answer is found in a model's text and compared with the truth, one file a kind."""
