#!/bin/sh
# `make setup` installs this script as `regenesis` in the environment. It runs the checkout that
# contains the environment. It works from any folder, and also through a symbolic link.
bin=$(dirname "$(readlink -f "$0")")
exec "$bin/python" "$bin/../../regenesis.py" "$@"
