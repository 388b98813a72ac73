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


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where the small random models are saved."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="session")
def plain(folder):
    """LLaVA of the real class with 16 tokens an image."""
    from tests import tiny

    return tiny.build(folder / "llava", next_=False)


@pytest.fixture(scope="session")
def cut(folder):
    """LLaVA-NeXT of the real class with at most 5 crops of 16 tokens."""
    from tests import tiny

    return tiny.build(folder / "next", next_=True)


@pytest.fixture(params=["plain", "cut"])
def both(request):
    """Each of them, with a budget that keeps a quarter."""
    return request.getfixturevalue(request.param), 4 if request.param == "plain" else 20
