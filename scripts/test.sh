#!/usr/bin/env bash
# Every test, without network. Extra arguments go to pytest: bash scripts/test.sh tests/test_shift.py -k frechet
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 WANDB_MODE=offline
.venv/bin/python -m ruff check .
exec .venv/bin/python -m pytest "$@"
