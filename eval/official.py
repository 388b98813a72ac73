"""lmms-eval's own benchmarks (`task_set` has ours too): where their data lies, and what names an image.

The data come from the hub or from local parquet files. Prompts, answer lengths and metrics stay lmms-eval's. What is
changed: no token is asked for where the data are local or public, GQA's pictures (a data set of their own) are looked
up one by one instead of being decoded all at once, and TextVQA's questions carry the OCR tokens that LLaVA's own
evaluation gives (`tasks.ocr`).
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pruning.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from PIL import Image

GQA_IMAGES = "testdev_balanced_images"
NAMED = re.compile(r"^(task|group): *[\"']?([\w.-]+)", re.M)
COUNTS = {  # (questions, images) of the paper's five as published, for estimates only
    "gqa": (12578, 398),
    "mme": (2374, 1187),
    "pope": (9000, 500),
    "scienceqa_img": (2017, 2017),
    "textvqa_val": (5000, 3166),
}


@dataclass(frozen=True)
class Source:
    """What an official task's YAML says of its data."""

    repo: str
    config: str | None
    split: str
    kwargs: dict[str, Any]  # lmms_eval_specific_kwargs
    folder: Path  # of the YAML

    @property
    def include(self) -> str:
        """A pattern of all the files that are read, for `hf download --include`."""
        folder = "testdev_balanced_*" if GQA_IMAGES in self.configs else self.config or "data"
        return f"{folder}/{self.split}*"

    @property
    def configs(self) -> list[str | None]:
        """Everything that is read from the hub's data set."""
        return [self.config, GQA_IMAGES] if self.config == "testdev_balanced_instructions" else [self.config]


@functools.lru_cache(maxsize=32)
def size(task: str, data_dir: str | None) -> tuple[int, int] | None:
    """Questions and images of a task: of the files below `data_dir`, else as published; None where unknown."""
    found = source(task)
    if found is None or data_dir is None:
        return COUNTS.get(task)
    import pyarrow.parquet as pq

    try:
        tables = [pq.ParquetFile(file) for file in files(task, data_dir, found.config, found.split)]
    except InputError:  # not there yet
        return COUNTS.get(task)
    columns = list(image_columns(task, tables[0].schema_arrow.names))
    questions = sum(table.metadata.num_rows for table in tables)
    images = {tuple(row.values()) for table in tables for row in table.read(columns).to_pylist()} if columns else ()
    return questions, len(images) or questions


class _Loader(yaml.SafeLoader):
    """Reads `!function` as nothing."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


# --- names and sources -----------------------------------------------------------------------------------
@functools.lru_cache(maxsize=1)
def yamls() -> dict[tuple[str, str], Path]:
    """("task" or "group", name) -> its file in lmms-eval, found without importing lmms-eval."""
    spec = find_spec("lmms_eval")
    assert spec is not None and spec.submodule_search_locations
    files = sorted((Path(spec.submodule_search_locations[0]) / "tasks").rglob("*.yaml"))
    return {(kind, name): file for file in files for kind, name in NAMED.findall(file.read_text(errors="replace"))}


def names() -> list[str]:
    """All task and group names of lmms-eval."""
    return sorted({name for _, name in yamls()})


@functools.lru_cache(maxsize=32)
def source(name: str) -> Source | None:
    """Where a task's data come from; None for a group."""
    file = yamls().get(("task", name))
    if file is None:
        return None
    values = _read(file)
    split = values.get("test_split") or values.get("validation_split")
    kwargs = (values.get("lmms_eval_specific_kwargs") or {}).get("default", {})
    return Source(values["dataset_path"], values.get("dataset_name"), split, kwargs, file.parent)


def _read(file: Path) -> dict[str, Any]:
    values = yaml.load(file.read_text(), _Loader)
    included = values.pop("include", [])
    base: dict[str, Any] = {}
    for path in reversed([included] if isinstance(included, str) else included):
        base |= _read(file.parent / path)
    return base | values


# --- local files -----------------------------------------------------------------------------------------
def files(name: str, data_dir: str, config: str | None, split: str) -> list[str]:
    """Parquet files of one configuration and split below `data_dir`/`name`, as downloaded or simply laid there.

    Raises:
        InputError: there is none.
    """
    folder = Path(data_dir) / name
    places = [folder / config] if config else []
    for place in [*places, folder / "data", folder]:
        for pattern in (f"{split}*.parquet", f"{split}/*.parquet", "*.parquet"):
            found = sorted(place.glob(pattern))
            if found:
                return [str(path) for path in found]
    raise InputError(
        f"no parquet files for task '{name}' in '{folder}'; expected {config or 'data'}/{split}-*.parquet or "
        f"{split}*.parquet of {source(name).repo}"  # type: ignore[union-attr]
    )


def local(name: str, data_dir: str) -> dict[str, Any]:
    """Data of a task on local parquet files of the official schema, as lmms-eval's configuration wants them.

    Raises:
        InputError: no files, or `name` is a group.
    """
    found = source(name)
    if found is None:
        raise InputError(f"'{name}' is a group of tasks; with tasks.data_dir name its tasks one by one")
    data = {found.split: files(name, data_dir, found.config, found.split)}
    return {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": {"data_files": data}}


def spec(name: str, data_dir: str | None, ocr: bool | None) -> dict[str, Any] | str:
    """lmms-eval's configuration of an official task: its own YAML and what is changed.

    Raises:
        InputError: local files that are not there.
    """
    found = source(name)
    if found is None and data_dir is None:
        return name
    out: dict[str, Any] = {"task": name}
    out |= {"dataset_kwargs": {}} if data_dir is None else local(name, data_dir)
    if name == "gqa":
        pictures = GqaImages(data_dir)
        out |= {"process_docs": None, "doc_to_visual": pictures.visual}
    if ocr is not None and "ocr" in found.kwargs:  # type: ignore[union-attr]
        out["lmms_eval_specific_kwargs"] = {"default": {**found.kwargs, "ocr": ocr}}  # type: ignore[union-attr]
    return out


class GqaImages:
    """GQA's pictures by `imageId`, read when the first one is asked for."""

    def __init__(self, data_dir: str | None) -> None:
        self.data_dir = data_dir

    @functools.cached_property
    def known(self) -> dict[str, bytes]:
        """Image id -> encoded picture."""
        if self.data_dir is None:
            import datasets

            rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(
                "lmms-lab-encoder/GQA", GQA_IMAGES, split="testdev"
            ).cast_column("image", datasets.Image(decode=False))
        else:
            import pyarrow.parquet as pq

            found = files("gqa", self.data_dir, GQA_IMAGES, "testdev")
            rows = [row for file in found for row in pq.read_table(file, columns=["id", "image"]).to_pylist()]
        return {row["id"]: row["image"]["bytes"] for row in rows}

    def visual(self, doc: Mapping[str, Any]) -> list[Image.Image]:
        """The picture of a question."""
        from PIL import Image

        if doc.get("image") is not None:  # questions and pictures in one file
            return [doc["image"]]
        return [Image.open(io.BytesIO(self.known[doc["imageId"]]))] if doc["imageId"] in self.known else []


# --- images ----------------------------------------------------------------------------------------------
def image_columns(task: str, columns: Iterable[str]) -> tuple[str, ...]:
    """The columns of a task's documents that tell images apart; none where every document is an image of its own."""
    if task == "mme":
        return ("category", "question_id")
    return next(((name,) for name in ("image_id", "imageId", "image_source") if name in columns), ())


def image_name(task: str, doc: Mapping[str, Any], number: int) -> str:
    """What names the image of a document in records."""
    columns = image_columns(task, doc)
    return "/".join(str(doc[name]) for name in columns) if columns else f"{task}-{number}"


# --- scores ----------------------------------------------------------------------------------------------
def measure(task: str) -> str:
    """What the score of a task in percent is, and with it the task's part of the average."""
    return {
        "mme": "perception + cognition, in percent of the most that can be had",
        "mini_mme": "mean of accuracy and accuracy-plus",
        "pope": "accuracy",
        "scienceqa_img": "exact match",
        "textvqa_val": "soft accuracy",
    }.get(task, "mean of the questions' scores")


def weights(task: str, kinds: pd.Series) -> np.ndarray:
    """(n,) weights of questions in their task's score, of mean 1: MME's total counts its categories alike."""
    import numpy as np

    if task != "mme":
        return np.ones(len(kinds))
    count = kinds.map(kinds.value_counts()).to_numpy(np.float64)
    return len(kinds) / (kinds.nunique() * count)


def in_words(task: str, metrics: Mapping[str, float]) -> str | None:
    """The metrics of a task that its score does not show, for the table on the screen."""
    if task == "mme":
        parts = [(metrics.get(f"mme_{kind}_score", 0.0), kind) for kind in ("perception", "cognition")]
        return " + ".join(f"{value:.1f} {kind}" for value, kind in parts) + f" = {metrics['mme_total']:.1f}"
    if task.startswith("pope"):
        keys = ("pope_f1_score", "pope_precision", "pope_recall", "pope_said_yes")
        named = zip(("F1", "precision", "recall", "says yes"), keys)
        return ", ".join(f"{name} {100 * metrics[key]:.1f} %" for name, key in named if key in metrics)
    return None


def extra_metrics(task: str, rows: pd.DataFrame, metrics: Mapping[str, float]) -> dict[str, float]:
    """What lmms-eval leaves out: MME's total, and how often the model said yes to POPE's questions.

    lmms-eval's own `pope_yes_ratio` is the share of yes among the expected answers, whatever the model says.
    """
    if task == "mme":
        names = ("mme_perception_score", "mme_cognition_score")
        return {"mme_total": float(sum(metrics[name] for name in names if name in metrics))}
    if task.startswith("pope"):
        said = rows["prediction"].str.strip().str.lower()
        return {"pope_said_yes": float((said == "yes").mean())}
    return {}
