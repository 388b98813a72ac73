"""Our evaluation beside the loop of lmms-eval's `llava_hf`, on the same model, questions and machine.

    python scripts/bench.py loop            all questions of the test split, about 4 minutes on 2 cores

lmms-eval 0.7.3's packaged wrapper cannot be imported here (it wants decord at import), so its call sequence is
written out with plain Hugging Face code: one question at a time the image is decoded, image and prompt go through the
processor, `generate` runs greedily, the new ids are decoded. Ours is `Llava.answer`: with everything that a run does,
shift metrics included, or the answers alone, as in lmms-eval's own command (`eval.lmms_cli`), which is what the loop
does too. All take turns on every few images, so that a busy machine slows all of them. Writes
results/embedded/bench/loop.json and loop.md.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from scripts.benches._embedded import load_mini
from scripts.benches._report import parser, quartiles, save

TASKS = ("mini_gqa", "mini_mme", "mini_pope", "mini_sqa", "mini_textvqa")
Asked = list[tuple[dict, list[str]]]  # a document of each image, and its questions


def questions(split: str, images: int | None) -> tuple[Callable[[dict], list], list[tuple[dict, list[str]]]]:
    """What opens a document's image, and the questions of each image, worded as the tasks word them."""
    from eval.settings import data_folder
    from eval.task_set import image_store, load_tasks

    asked: dict[str, tuple[dict, list[str]]] = {}
    for task in load_tasks(TASKS, split, None, images):
        for doc in task.eval_docs_no_media:
            asked.setdefault(doc["image_id"], (doc, []))[1].append(task.doc_to_text(doc))
    return image_store(data_folder(None, split) / "images.parquet").visual, list(asked.values())


@torch.no_grad()
def plain(llava: Any, visual: Callable[[dict], list], batch: Asked, new_tokens: int) -> list[str]:
    """The answers of llava_hf's loop: batch 1, everything anew for every question."""
    said = []
    for doc, own in batch:
        for question in own:
            image = visual(doc)[0].convert("RGB")
            inputs = llava.processor(images=image, text=llava.prompt.format(question=question), return_tensors="pt")
            ids = llava.model.generate(
                **inputs, do_sample=False, num_beams=1, max_new_tokens=new_tokens, use_cache=True,
                pad_token_id=llava.tokenizer.eos_token_id,
            )  # fmt: skip
            new = ids[:, inputs["input_ids"].shape[-1] :]
            said.append(llava.tokenizer.batch_decode(new, skip_special_tokens=True)[0].strip())
    return said


def ours(
    llava: Any, visual: Callable[[dict], list], batch: Asked, new_tokens: int, pruner: Any, shifts: bool = True
) -> list[str]:
    """The answers of the wrapper to the same questions."""
    images = [visual(doc)[0].convert("RGB") for doc, _ in batch]
    answers = llava.answer(images, [own for _, own in batch], pruner, new_tokens, shifts)
    return [answer.text.strip() for own in answers for answer in own]


def compare(
    llava: Any, split: str, images: int | None, batch: int, method: str, budget: int, new_tokens: int
) -> dict:
    """Seconds of each way on every batch, and how many answers of the unpruned ways agree."""
    import pruning

    visual, asked = questions(split, images)
    full, pruned = pruning.load("vanilla", llava.visual_tokens), pruning.load(method, budget)
    llava.expect(pruned)
    ways = {
        "loop": lambda part: plain(llava, visual, part, new_tokens),
        "unpruned": lambda part: ours(llava, visual, part, new_tokens, full),
        "pruned": lambda part: ours(llava, visual, part, new_tokens, pruned),  # after the unpruned: shares its tower
        "pruned_alone": lambda part: ours(llava, visual, part, new_tokens, pruned),
        "pruned_answers": lambda part: ours(llava, visual, part, new_tokens, pruned, shifts=False),
    }
    for work in ways.values():  # warm up
        work(asked[:1])
    seconds, same, total = defaultdict(list), 0, 0
    for start in range(0, len(asked), batch):
        part, said = asked[start : start + batch], {}
        for name, work in ways.items():
            if name != "pruned":
                llava.cache.clear()
            begin = time.perf_counter()
            said[name] = work(part)
            seconds[name].append(time.perf_counter() - begin)
        same += sum(a == b for a, b in zip(said["loop"], said["unpruned"], strict=True))
        total += len(said["loop"])
    return {"questions": total, "images": len(asked), "same_answers": same, "seconds": dict(seconds)}


def table(result: dict) -> str:
    """Seconds and ratios as markdown."""
    words = {
        "loop": "llava_hf's loop, all tokens",
        "unpruned": "ours, all tokens",
        "pruned": f"ours, {result['method']} at {result['budget']} tokens, after the unpruned run",
        "pruned_alone": f"ours, {result['method']} at {result['budget']} tokens, alone",
        "pruned_answers": f"ours, {result['method']} at {result['budget']} tokens, alone, without the shift metrics",
    }
    seconds, rows = (
        result["seconds"],
        ["| way | seconds | times as fast as the loop | of batches: median (quartiles) |", "| --- " * 4 + "|"],
    )
    for name, text in words.items():
        low, middle, high = quartiles([a / b for a, b in zip(seconds["loop"], seconds[name])])
        took, whole = sum(seconds[name]), sum(seconds["loop"])
        rows.append(f"| {text} | {took:.1f} | {whole / took:.1f} | {middle:.1f} ({low:.1f} to {high:.1f}) |")
    said = (
        f"{result['same_answers']} of {result['questions']} answers of the loop and of ours, unpruned, are the same."
    )
    return "\n".join([*rows, "", f"{said} {result['images']} images, float32, {result['threads']} threads."]) + "\n"


def main(arguments: list[str]) -> None:
    options = parser("loop", __doc__.splitlines()[0])
    options.add_argument("--images", type=int, help="the first so many; all by default")
    options.add_argument("--split", default="test")
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--method", default="acgr_tatcs")
    options.add_argument("--budget", type=int, default=16)
    options.add_argument("--new-tokens", type=int, default=16)
    options.add_argument("--threads", type=int, default=2)
    args = options.parse_args(arguments)
    torch.set_num_threads(args.threads)
    result = compare(load_mini(), args.split, args.images, args.batch, args.method, args.budget, args.new_tokens)
    result |= {"method": args.method, "budget": args.budget, "threads": args.threads, "split": args.split}
    save("loop", result, table(result), args.out)
