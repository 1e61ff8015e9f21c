"""Where questions come from: one file a kind of source, none of which knows of splits' rules."""
