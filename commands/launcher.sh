#!/bin/sh
# `make setup` puts this into the environment as `regenesis`. It runs the checkout that the
# environment lies in, from any folder, also by a link to it from a folder of the PATH.
bin=$(dirname "$(readlink -f "$0")")
exec "$bin/python" "$bin/../../regenesis.py" "$@"
