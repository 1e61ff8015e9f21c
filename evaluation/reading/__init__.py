"""Read rows of question files strictly: nothing is silently dropped or altered."""
