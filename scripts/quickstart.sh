#!/usr/bin/env bash
# From a fresh clone to a result: makes the environment and runs the main job. Extra arguments go to run.py.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec .venv/bin/python run.py budget=16 method=acgr_tatcs "$@"
