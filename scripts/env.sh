# Makes .venv from requirements.txt, or reuses it while requirements.txt is unchanged. Sourced by the other scripts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stamp=.venv/.requirements
if ! cmp -s requirements.txt "$stamp"; then
    echo "Installing requirements.txt into .venv (about 3 minutes the first time) ..."
    command -v python3 >/dev/null || { echo "error: python3 (3.10 or newer) not found; install it first" >&2; exit 2; }
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: python 3.10 or newer expected, got $(python3 -V)" >&2; exit 2; }
    [ -x .venv/bin/python ] || python3 -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt 2> .venv/pip.log \
        || { cat .venv/pip.log >&2; echo "error: pip could not install requirements.txt (see above)" >&2; exit 1; }
    cp requirements.txt "$stamp"
fi
