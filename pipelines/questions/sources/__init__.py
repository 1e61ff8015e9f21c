"""The sources of questions: one file for each kind; none depends on the rules for splits."""
