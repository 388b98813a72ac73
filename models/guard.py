"""Makes transformers importable next to a torchvision that does not fit the installed torch."""

from __future__ import annotations

import sys


def guard_torchvision() -> bool:
    """Hide a torchvision that fails to import; call before the first import of transformers.

    lmms-eval requires torchvision and PyPI serves its CUDA builds only. Next to a CPU build of torch their import
    raises `operator torchvision::nms does not exist`, which transformers reports as a missing model class. Nothing
    here needs torchvision: the PIL image processors are used everywhere, so that pixels do not depend on the machine.

    Returns:
        Whether torchvision works.
    """
    if sys.modules.get("torchvision", ...) is None:
        return False
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        return False
    except Exception:  # a binary mismatch raises RuntimeError or OSError, depending on the versions
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision"] = None  # type: ignore[assignment]
        return False
    return True
