"""Our LLaVA as a model of lmms-eval: requests grouped by image, answered in batches of images, journalled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TextIO

from models.guard import guard_torchvision

guard_torchvision()  # before lmms-eval, whose imports end in transformers'

import numpy as np  # noqa: E402
import torch  # noqa: E402
from lmms_eval.api.instance import GenerationResult, Instance  # noqa: E402
from lmms_eval.api.model import lmms  # noqa: E402
from PIL import Image, UnidentifiedImageError  # noqa: E402

from eval.journal import Journal  # noqa: E402
from eval.official import image_columns, image_name  # noqa: E402
from eval.progress import progress  # noqa: E402
from eval.settings import embedded_names  # noqa: E402
from eval.task_set import decode, strict  # noqa: E402
from models.images import Prepared  # noqa: E402
from models.llava import Answer, Llava  # noqa: E402
from pruning.base import Pruner  # noqa: E402
from pruning.errors import InputError  # noqa: E402
from pruning.shift import output_kl  # noqa: E402

Key = tuple[str, int, int]  # task, document, number of the choice
Row = dict[str, Any]  # the answer to one request, as the journal keeps it
DEFAULT_NEW_TOKENS = 128  # tasks that name none (textvqa_val); LLaVA's own evaluation script uses the same


@dataclass
class Group:
    """The requests on one image that are answered alike."""

    requests: list[Instance]
    options: tuple[int, tuple[str, ...]]  # new tokens at most, stop strings
    name: str  # of the image, in all tasks and data


class PrunedLlava(lmms):
    """lmms-eval's view of a `Llava` under one pruning method.

    Args:
        batch_size: images a batch.
        baseline: first answer-token logits of the unpruned model by request, for `output_kl`.
        keep_logits: keep the first logits beside the journal (the unpruned run, so that others can compare).
        pictured: how many images, from the first on, keep the trace of what the method did.
        screen: where the progress is shown.
        new_tokens: most tokens of an answer; None: what each task says.
        data: tells images of equal names in other data apart.
        shifts: measure the shift metrics.
    """

    is_simple = True

    def __init__(
        self,
        llava: Llava,
        pruner: Pruner,
        batch_size: int,
        journal: Journal,
        name: str,
        baseline: Callable[[Key], torch.Tensor | None] = lambda key: None,
        keep_logits: bool = False,
        pictured: int = 0,
        screen: TextIO | None = None,
        new_tokens: int | None = None,
        data: str = "",
        shifts: bool = True,
    ) -> None:
        super().__init__()
        self.llava, self.pruner, self.batch_size, self.journal, self.name = llava, pruner, batch_size, journal, name
        self.baseline, self.keep_logits, self.pictured, self.screen = baseline, keep_logits, pictured, screen
        self.data, self.shifts, self.new_tokens = data, shifts, new_tokens
        self.lengths: dict[str, int] = {}  # of each task's answers, at most
        self.embedded = frozenset(embedded_names())
        self.rows: dict[Key, Row] = {}
        self.pictured_requests: list[list[Instance]] = []  # by image

    def __repr__(self) -> str:
        return f"PrunedLlava({self.name}, {self.pruner})"  # stable: lmms-eval's response cache uses it as a key

    def clean(self) -> None:
        """lmms-eval would delete the model here; the next point of a sweep needs it."""

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests; "" where there is none (`rows` says why)."""
        self._run(requests, self._answer)
        return [GenerationResult(self.rows[key(r)]["text"]) for r in requests]

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """(mean negative log-likelihood, greedy or not) of each continuation.

        Wrapped because lmms-eval 0.7.3 turns a bare tuple into a string.
        """
        self._run(requests, self._score)
        return [GenerationResult(text=(self.rows[key(r)]["loss"], self.rows[key(r)]["greedy"])) for r in requests]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("tasks with several rounds are not supported")

    # --- batches ----------------------------------------------------------------------------------------
    def _run(self, requests: list[Instance], work: Callable[[list[Group], list[Any]], list[Row]]) -> None:
        groups, last = self._groups(requests), None
        self.pictured_requests += [g.requests for g in groups[: self.pictured]]
        with progress(len(requests), self.name, self.screen) as bar:
            for batch, name, images in self._read_ahead(self._batches(groups)):
                asked = [r for group in batch for r in group.requests]
                if images is not None:
                    with self.llava.stage("image processing"):  # what is left to wait for
                        ready = images.result()
                    self.journal.add(name, self._safely(batch, ready, work))
                rows = self.journal.batches.pop(name)
                for request, row in zip(asked, rows):
                    self.rows[key(request)] = last = compact(row, last)
                bar.update(len(asked))

    def _read_ahead(self, batches: Iterator[list[Group]]) -> Iterator[tuple[list[Group], str, Future | None]]:
        """Each batch with its name and, where the journal lacks it, its images; the next ones are read meanwhile."""
        with ThreadPoolExecutor(1, "images") as reader:
            waiting: list[tuple[list[Group], str, Future | None]] = []
            for batch in batches:
                keys = [key(r) for group in batch for r in group.requests]
                name = hashlib.blake2b(json.dumps(keys).encode(), digest_size=8).hexdigest()
                images = None if name in self.journal.batches else reader.submit(self._read, batch)
                waiting.append((batch, name, images))
                if len(waiting) > 1:
                    yield waiting.pop(0)
            yield from waiting

    def _groups(self, requests: list[Instance]) -> list[Group]:
        """Requests by image, in order of first appearance; the embedded tasks ask about the same images."""
        ids: dict[tuple[str, str], list[str]] = {}
        groups: dict[Any, Group] = {}
        for request in requests:
            doc_id, task, split = request.args[-3:]
            if (task, split) not in ids:
                ids[task, split] = image_names(task, self.task_dict[task][split])
            image = ("" if task in self.embedded else task, ids[task, split][doc_id])
            options = stop_rule(request, self.new_tokens)
            self.lengths[task] = options[0]
            group = Group([], options, f"{self.data}/{image[0]}/{image[1]}")
            groups.setdefault((image, options), group).requests.append(request)
        return list(groups.values())

    def _batches(self, groups: list[Group]) -> Iterator[list[Group]]:
        """`batch_size` images at a time; all questions of a batch stop alike."""
        for options in dict.fromkeys(group.options for group in groups):
            alike = [group for group in groups if group.options == options]
            for start in range(0, len(alike), self.batch_size):
                yield alike[start : start + self.batch_size]

    def _read(self, batch: list[Group]) -> list[Prepared | Image.Image | str]:
        """The image of each group, or why there is none."""
        return [self._image(group) for group in batch]

    def _image(self, group: Group) -> Prepared | Image.Image | str:
        def load() -> Image.Image:
            with strict():  # official data are decoded when the document is read
                return decode(visuals(group.requests[0], self.task_dict))

        known = self.llava.known(group.name, load, self.pruner)
        if known is not None:
            return known
        try:
            image = load()
        except UnidentifiedImageError:  # its message names a memory address
            return "image: not a picture in any known format"
        except Image.DecompressionBombError:
            return "image: too large"
        except (OSError, ValueError, SyntaxError) as error:
            return f"image: {error}"
        return self.llava.prepare(group.name, image)

    def _safely(
        self,
        batch: list[Group],
        images: list[Prepared | Image.Image | str],
        work: Callable[[list[Group], list[Any]], list[Row]],
    ) -> list[Row]:
        """Rows of a batch; images that cannot be read get failed rows, a batch too big for the GPU is halved."""
        good = [(g, i) for g, i in zip(batch, images) if not isinstance(i, str)]
        rows = iter(self._halving([g for g, _ in good], [i for _, i in good], work))
        return [
            failed_row(image) if isinstance(image, str) else next(rows)
            for group, image in zip(batch, images)
            for _ in group.requests
        ]

    def _halving(self, batch: list[Group], images: list[Any], work: Callable[..., list[Row]]) -> list[Row]:
        if not batch:
            return []
        with suppress(torch.OutOfMemoryError):
            return work(batch, images)
        # only here is the error gone, and with it all that the failed attempt held
        freed = self.llava.static.release()
        torch.cuda.empty_cache()
        if len(batch) == 1 and not freed:
            raise InputError("out of memory with one image; use a GPU with more memory or dtype=bfloat16")
        half = 0 if freed else len(batch) // 2  # with what was freed the whole batch may fit
        return self._halving(batch[:half], images[:half], work) + self._halving(batch[half:], images[half:], work)

    # --- work -------------------------------------------------------------------------------------------
    def _answer(self, batch: list[Group], images: list[Prepared | Image.Image]) -> list[Row]:
        new_tokens, stops = batch[0].options
        questions = [[r.args[0] for r in group.requests] for group in batch]
        answers = self.llava.answer(images, questions, self.pruner, new_tokens, self.shifts)
        asked = [r for group in batch for r in group.requests]
        traced = {key(r) for requests in self.pictured_requests for r in requests}
        flat = [answer for row in answers for answer in row]
        return [self._row(answer, key(r), stops, key(r) in traced) for answer, r in zip(flat, asked)]

    def _row(self, answer: Answer, request: Key, stops: tuple[str, ...], traced: bool) -> Row:
        text = answer.text
        for stop in stops:
            text = text.split(stop)[0]
        row: Row = {
            "text": text.strip(),
            "failed": answer.failed,
            "visual_tokens": answer.visual_tokens,
            "index": answer.index,
            "shifts": answer.shifts,
            "output_kl": None,
        }
        full = self.baseline(request)
        if full is not None and answer.failed is None:
            row["output_kl"] = float(output_kl(answer.first_logits[None], full[None]))
        if self.keep_logits:
            row["logits"] = answer.first_logits.numpy().astype(np.float16)
        if traced:
            row["trace"] = {name: values.tolist() for name, values in answer.trace.items()}
        return row

    def _score(self, batch: list[Group], images: list[Prepared | Image.Image]) -> list[Row]:
        questions = [[r.args[0] for r in group.requests] for group in batch]
        said = [[self._continuation(r) for r in group.requests] for group in batch]
        losses = [pair for row in self.llava.score(images, questions, said, self.pruner) for pair in row]
        count = self.pruner.keeps(self.llava.visual_tokens)
        return [failed_row(None) | {"loss": a, "greedy": b, "visual_tokens": count} for a, b in losses]

    def _continuation(self, request: Instance) -> str:
        given, doc_id, task, split = request.args[1], *request.args[-3:]
        return given(self.task_dict[task][split][doc_id]) if callable(given) else given


def key(request: Instance) -> Key:
    """What names a request across runs."""
    return request.task_name, int(request.doc_id), int(request.idx)


def image_names(task: str, docs: Any) -> list[str]:
    """The name of each document's image."""
    columns = image_columns(task, docs.column_names)
    named = docs.select_columns(list(columns)) if columns else [{}] * len(docs)
    return [image_name(task, doc, number) for number, doc in enumerate(named)]


def stop_rule(request: Instance, new_tokens: int | None = None) -> tuple[int, tuple[str, ...]]:
    """(new tokens at most, stop strings) of a request; none for a continuation to score."""
    options = request.args[1]
    if not isinstance(options, dict):
        return 0, ()
    until = options.get("until") or []
    until = (until,) if isinstance(until, str) else tuple(until)
    longest = int(new_tokens or options.get("max_new_tokens") or DEFAULT_NEW_TOKENS)
    return longest, tuple(stop for stop in until if stop)


def visuals(request: Instance, task_dict: dict[str, Any]) -> list[Any]:
    """The images of a request, as its task gives them."""
    doc_to_visual = request.args[2]
    doc_id, task, split = request.args[-3:]
    found = doc_to_visual(task_dict[task][split][doc_id])
    return list(found) if isinstance(found, list | tuple) else [found]


def compact(row: Row, last: Row | None) -> Row:
    """A row as it waits in memory for the end of the run: numbers in an array, shared with an equal one before it."""
    index = np.asarray(row["index"], np.int16)
    if last is not None and np.array_equal(index, last["index"]):
        index = last["index"]
    return row | {"index": index}


def failed_row(reason: str | None) -> Row:
    """A row without an answer."""
    row: Row = {"text": "", "failed": reason, "visual_tokens": None, "index": [], "shifts": {}, "output_kl": None}
    return row | {"loss": float("inf"), "greedy": False}
