"""The commands besides `run`, a file each: `add_arguments(parser)`, and `run(arguments)`, which
returns the exit code. `regenesis.py` names them, and imports the one that is called. `arguments`
has what several of them share."""
