"""A run's tasks as lmms-eval takes them, with data and pictures of the embedded ones (`eval/tasks`) filled in."""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

from PIL import Image, ImageFile

from eval import official
from eval.settings import TASKS, data_folder, embedded_names
from pruning.errors import InputError

log = logging.getLogger("dcp_prune")
SWITCH = RLock()  # Pillow's switch is one for all threads
MAX_PIXELS, MAX_ASPECT = 89_000_000, 100  # beyond these an image is taken for broken, not for a photograph


class ImageStore:
    """The pictures of one split of the embedded tasks, read when asked for, one row group of the file at a time."""

    def __init__(self, file: Path) -> None:
        import pyarrow.parquet as pq

        self.file, table = file, pq.ParquetFile(file)
        groups = [table.read_row_group(g, ["image_id"])["image_id"].to_pylist() for g in range(table.num_row_groups)]
        self.ids: list[Any] = [name for group in groups for name in group]
        self._group = {name: g for g, group in enumerate(groups) for name in group}

    def visual(self, doc: Mapping[str, Any]) -> list[Image.Image]:
        """The picture of a question, as lmms-eval's doc_to_visual returns it; decoding waits for the first use."""
        name = doc["image_id"]
        found = row_group(self.file, self._group[name]).get(name) if name in self._group else None
        return [] if found is None else [Image.open(io.BytesIO(found))]


@functools.lru_cache(maxsize=2)  # questions come image after image
def row_group(file: Path, group: int) -> dict[Any, bytes]:
    """The encoded pictures of one row group, by name."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file).read_row_group(group, ["image_id", "image"])
    cells = zip(table["image_id"].to_pylist(), table["image"].to_pylist())
    return {name: cell["bytes"] for name, cell in cells if cell}


def decode(images: list[Any]) -> Image.Image:
    """The one image of a question, in RGB.

    Raises:
        ValueError: none or several, or not decodable; the message is the reason that the record keeps.
    """
    if len(images) != 1:
        raise ValueError(f"expected one image, got {len(images)}")
    image = images[0]
    if not isinstance(image, Image.Image):
        raise ValueError(f"expected an image, got {type(image).__name__}")
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"image of {width} x {height} pixels is too large or too narrow")
    with strict():
        return image.convert("RGB")


@contextmanager
def strict() -> Iterator[None]:
    """Half a picture is an error inside the block and not scored: lmms-eval turns Pillow's leniency on."""
    with SWITCH:
        lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = lenient


@functools.lru_cache(maxsize=4)
def load_tasks(
    names: tuple[str, ...], split: str, data_dir: str | None, limit: int | None, ocr: bool | None = None
) -> tuple[Any, ...]:
    """lmms-eval task objects; loaded once for all points of a sweep.

    Args:
        ocr: whether TextVQA's questions carry OCR tokens; None leaves the task alone.

    Raises:
        InputError: a data set that cannot be read (with the reason), or that is not on this machine while offline.
    """
    from lmms_eval.tasks import TaskManager, get_task_dict

    own = set(embedded_names())
    folders = {official.source(name) and str(official.source(name).folder) for name in set(names) - own}
    manager = TaskManager(  # all of lmms-eval's tasks take four seconds to read: only for its groups
        "ERROR", include_path=[str(TASKS), *filter(None, folders)], include_defaults=None in folders
    )
    loaded = []
    for name in names:
        if name in own and not asks(name, split, data_dir, limit):
            log.info("%s asks nothing about the images of limit=%s; left out", name, limit)
            continue
        spec = embedded(name, split, data_dir, limit) if name in own else official.spec(name, data_dir, ocr)
        try:
            found = flat(get_task_dict([spec], manager))
            for task in found:
                check_columns(task, ocr)
            loaded += found
        except InputError:
            raise
        except Exception as error:  # lmms-eval wraps what went wrong in a RetryError
            attempt = getattr(error, "last_attempt", None)
            reason = attempt.exception() if attempt is not None else error
            line = str(reason).strip().splitlines()[0] if str(reason).strip() else type(reason).__name__
            raise InputError(f"cannot load task '{name}': {line}") from error
    if not loaded:
        raise InputError(f"no question about the images of limit={limit}; raise it")
    return tuple(loaded)


def check_columns(task: Any, ocr: bool | None) -> None:
    """Raises InputError where a task's data lack what its prompts need."""
    wanted = {"question"} | ({"ocr_tokens"} if ocr and task.config.task.startswith("textvqa") else set())
    missing = wanted - set(task.eval_docs.column_names)
    if missing and task.config.task in official.COUNTS:
        hint = "; set tasks.ocr=false to ask without" if "ocr_tokens" in missing else ""
        raise InputError(f"the data of task '{task.config.task}' have no column '{min(missing)}'{hint}")


def asks(name: str, split: str, data_dir: str | None, limit: int | None) -> bool:
    """Whether an embedded task has a question about the first `limit` images."""
    import pyarrow.parquet as pq

    folder = data_folder(data_dir, split)
    images = pq.read_table(folder / f"{name}.parquet", columns=["image_id"])["image_id"].to_pylist()
    return not set(image_store(folder / "images.parquet").ids[:limit]).isdisjoint(images)


def flat(tasks: Mapping[Any, Any]) -> list[Any]:
    """Task objects of a task dict; groups are nested ones."""
    return [x for value in tasks.values() for x in (flat(value) if isinstance(value, Mapping) else [value])]


def embedded(name: str, split: str, data_dir: str | None, limit: int | None) -> dict[str, Any]:
    """Task spec of an embedded task on the first `limit` images of the split."""
    folder = data_folder(data_dir, split)
    store = image_store(folder / "images.parquet")
    chosen = set(store.ids[:limit])
    return {
        "task": name,
        "dataset_kwargs": {"data_files": {"test": str((folder / f"{name}.parquet").resolve())}},
        "doc_to_visual": store.visual,
        "process_docs": lambda docs: docs.select([i for i, x in enumerate(docs["image_id"]) if x in chosen]),
    }


image_store = functools.lru_cache(maxsize=2)(ImageStore)
