"""Whether a model can be had, found out in seconds: the hub client itself retries for half a minute."""

from __future__ import annotations

import urllib.error
import urllib.request

from pruning.errors import InputError

TIMEOUT = 3.0  # seconds


def require(name: str, file: str = "config.json") -> None:
    """Checks that the hub's `name` (org/name) lies in the cache, or that the hub answers.

    Raises:
        InputError: neither; says where it was looked for and what to set.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, file), str):
        return
    if constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE is set"
    elif answers(constants.ENDPOINT):
        return
    else:
        why = f"{constants.ENDPOINT} does not answer"
    raise InputError(
        f"model '{name}' is not a folder, not in the cache ({constants.HF_HUB_CACHE}), and {why}; "
        f"set model.path=FOLDER, or run `huggingface-cli download {name}` where there is a network"
    )


def answers(url: str) -> bool:
    """Whether a server answers at `url`, whatever it says."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True
