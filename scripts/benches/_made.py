"""Made-up data of the five embedded tasks, for runs whose pictures or number of pictures are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TASKS = ("gqa", "mme", "pope", "sqa", "textvqa")
GROUP = 64  # pictures a row group: what is in memory at once


def write_tasks(folder: Path, images: Sequence[bytes], ask: Callable[[str, int], list[tuple[str, str]]]) -> Path:
    """Writes the test split of all five tasks; `folder` is then a `tasks.data_dir`.

    Args:
        images: encoded pictures.
        ask: task and number of a picture -> its questions and answers; mini_mme's come in pairs.
    """
    split = folder / "test"
    split.mkdir(parents=True)
    names = [f"test-{i:04d}" for i in range(len(images))]
    cells = [{"bytes": image, "path": None} for image in images]
    pictures = pa.table({"image_id": names, "image": cells, "boxes": ["[]"] * len(names)})
    pq.write_table(pictures, split / "images.parquet", GROUP)
    for task in TASKS:
        rows = [
            {"question_id": f"{task}-{name}-{j}", "image_id": name, "question": q, "answer": a, "type": task}
            | ({"pair_id": name} if task == "mme" else {})
            for i, name in enumerate(names)
            for j, (q, a) in enumerate(ask(task, i))
        ]
        pq.write_table(pa.Table.from_pylist(rows), split / f"mini_{task}.parquet")
    return folder
