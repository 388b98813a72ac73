"""The embedded model and a handful of its test images, loaded once a session."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "USER: <image>\n{question} ASSISTANT:"
torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def llava():
    """The embedded LLaVA in float32."""
    from models.load import load

    return load(str(ROOT / "models" / "mini"), PROMPT, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def scenes() -> list[tuple[Image.Image, list[str], list[dict]]]:
    """Four development images, each with three questions and its objects."""
    folder = ROOT / "eval" / "tasks" / "data" / "dev"
    images = pd.read_parquet(folder / "images.parquet").head(4)
    tasks = [pd.read_parquet(folder / f"mini_{name}.parquet") for name in ("gqa", "pope", "textvqa")]
    asked = pd.concat(tasks)
    out = []
    for row in images.itertuples():
        picture = Image.open(io.BytesIO(row.image["bytes"])).convert("RGB")
        questions = asked[asked.image_id == row.image_id].question.tolist()[:3]
        out.append((picture, questions, json.loads(row.boxes)))
    return out
