"""One file for each command except `run`, with `add_arguments(parser)` and `run(arguments)`, which
returns the exit code. `regenesis.py` lists the commands and imports only the one that is called.
`arguments` holds the arguments that several commands share."""
