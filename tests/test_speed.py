"""What makes it fast stays so: memory that does not grow with the samples, shapes that do not depend on the image."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pruning
from tests import tiny
from tests.sandbox import encoded, picture, write_data

ROOT = Path(__file__).resolve().parent.parent
RUNS = """
import resource, sys, run
for limit in (8, 48):
    assert run.main([*sys.argv[1:], f"limit={limit}"]) == 0
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    """A picture kept in memory is 5.4 MB, so 40 more of them would pass the bound."""
    image = encoded(picture(0).resize((1344, 1344)), "JPEG")
    data, model = write_data(tmp_path / "data", [image] * 48), tiny.save(tmp_path / "tiny", next_=False)
    words = [
        "budget=4",
        "method=cls_attention",
        "tasks.names=[mini_pope]",
        "pictures=0",
        "batch_size=2",
        "out=" + str(tmp_path / "o"),
    ]
    words += [f"tasks.data_dir={data}", f"model.path={model}"]
    done = subprocess.run([sys.executable, "-c", RUNS, *words], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    few, many = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak"))
    assert many < 1.15 * few


class Shapes(TorchDispatchMode):
    """Records every operation with the shapes of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        self.seen.append((str(op), [tuple(x.shape) for x in args if isinstance(x, torch.Tensor)]))
        return out


@pytest.mark.parametrize("name", ["acgr_tatcs", "cls_attention", "visionzip", "scope"])
@torch.no_grad()
def test_tower_projector_and_prefill_have_the_same_shapes_whatever_the_image(llava, scenes, name) -> None:
    """What compiling or a CUDA graph needs. Choosing may branch (TATCS has a trigger and a loop)."""
    pruner, seen, question = pruning.load(name, 16), [], "What color is the star?"
    for image, _, _ in scenes[:3]:
        pixels = llava.pixels([image])
        llava.cache.clear()
        with Shapes() as shapes:
            tokens = llava.tower.survivors(pixels, pruner)
        kept = pruner.finish(tokens, llava.read([question]) if pruner.reads_question else None)
        with shapes:
            llava._pack(llava.project(kept), [0], [llava.prompt_ids(question)], pruner).prefill([1])
        seen.append(shapes.seen)
    assert len(seen[0]) > 100 and seen[0] == seen[1] == seen[2]
