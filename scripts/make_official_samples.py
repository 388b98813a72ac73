"""Writes a small synthetic set in the official schema of the paper's five benchmarks: no download, no real question.

    python scripts/make_official_samples.py FOLDER [--images 8]
    python run.py tasks=paper tasks.data_dir=FOLDER

The files lie as `hf download --repo-type dataset ... --local-dir FOLDER/TASK` lays the real ones, with the same
columns. Pictures and questions are those of the embedded development split.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

DATA = ROOT / "eval" / "tasks" / "data" / "dev"
MME = ("existence", "count", "position", "color", "code_reasoning", "commonsense_reasoning")
Row = dict[str, Any]


def gqa(row: Row, number: int) -> Row:
    return {
        **{"id": f"{number:08d}", "imageId": row["image_id"], "question": row["question"], "answer": row["answer"]},
        **{"fullAnswer": f"It is {row['answer']}.", "isBalanced": True, "groups": {"local": row["type"]}},
        **{"entailed": None, "equivalent": None, "semanticStr": None},
        "types": {"structural": "query", "semantic": "attr", "detailed": row["type"]},
    }


def gqa_image(row: Row, number: int) -> Row:
    return {"id": row["image_id"], "image": row["image"]}


def mme(row: Row, number: int) -> Row:
    category = MME[int(row["image_id"].rsplit("-")[-1]) % len(MME)]
    asked, answer = f"{row['question']} Please answer yes or no.", row["answer"].capitalize()
    name = f"{category}/{row['pair_id']}.png"
    return {"question_id": name, "image": row["image"], "question": asked, "answer": answer, "category": category}


def pope(row: Row, number: int) -> Row:
    return {
        **{"id": str(number), "question_id": str(number), "question": row["question"], "answer": row["answer"]},
        **{"image_source": row["image_id"], "image": row["image"], "category": row["type"]},
    }


def scienceqa(row: Row, number: int) -> Row:
    question, *options = row["question"].split("\n")
    choices = [option.split(". ", 1)[1] for option in options]
    return {
        **{"image": row["image"], "question": question, "choices": choices, "answer": "ABCDE".index(row["answer"])},
        **{"hint": "", "task": "closed choice", "grade": "grade2", "subject": "natural science", "topic": "physics"},
        **{"category": "Materials", "skill": "Identify", "lecture": "", "solution": ""},
    }


def textvqa(row: Row, number: int) -> Row:
    return {
        **{"image_id": row["image_id"], "question_id": number, "question": row["question"], "image": row["image"]},
        **{"question_tokens": row["question"].split(), "image_width": 336, "image_height": 336, "image_classes": []},
        **{"flickr_original_url": "", "flickr_300k_url": "", "set_name": "val"},
        **{"answers": [row["answer"]] * 10, "ocr_tokens": [row["answer"]]},
    }


FILES: dict[str, tuple[str, Callable[[Row, int], Row]]] = {  # file -> embedded task, row
    "gqa/testdev_balanced_instructions/testdev": ("mini_gqa", gqa),
    "gqa/testdev_balanced_images/testdev": ("images", gqa_image),
    "mme/data/test": ("mini_mme", mme),
    "pope/data/test": ("mini_pope", pope),
    "scienceqa_img/ScienceQA-IMG/test": ("mini_sqa", scienceqa),
    "textvqa_val/data/validation": ("mini_textvqa", textvqa),
}


def write(folder: Path, images: int) -> list[Path]:
    """Writes the files on the first `images` development scenes; returns their paths."""
    import datasets

    scenes = pd.read_parquet(DATA / "images.parquet", columns=["image_id", "image"]).head(images)
    datasets.disable_progress_bars()
    made = []
    for name, (task, convert) in FILES.items():
        asked = scenes if task == "images" else pd.read_parquet(DATA / f"{task}.parquet").merge(scenes, on="image_id")
        rows = [convert(row, number) for number, row in enumerate(asked.to_dict("records"))]
        table = datasets.Dataset.from_list(rows)
        if "image" in table.column_names:
            table = table.cast_column("image", datasets.Image())
        path = folder / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path)
        made.append(path)
    return made


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=8)
    given = parser.parse_args(words)
    for path in write(given.folder, given.images):
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
