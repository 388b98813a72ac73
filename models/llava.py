"""A LLaVA that answers many questions about many images with pruned visual tokens.

One tower pass serves all questions, methods and budgets of an image; the questions of an image share the key-value
cache of its prefix (prompt head and visual tokens) unless the method reads the question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from models.cache import StateCache
from models.images import Pixels, Prepared, fingerprint
from models.packing import PackedPrompts
from models.rows import Rows, image_of_question, regrouped, rows_of
from models.static import StaticSteps
from models.text import read_questions, unmarked
from models.vision_tower import VisionTower
from models.whole import WholePrompts
from pruning.base import Pruner
from pruning.errors import InputError
from pruning.tokens import VisualTokens


@dataclass
class Answer:
    """What the model said to one question, and from which tokens."""

    text: str
    visual_tokens: float  # visual tokens that reached the language model (inside it: mean over its layers)
    index: list[int]  # their patch numbers (inside: at the last layer), raster order; -1: no patch
    first_logits: Tensor  # (V,) float32 logits of the first answer token
    shifts: dict[str, float] = field(default_factory=dict)  # every feature metric of pruning/shift.py
    trace: dict[str, Tensor] = field(default_factory=dict)  # what the method did, per patch (for the pictures)
    failed: str | None = None  # why there is no answer


class Llava:
    """A loaded LLaVA with its processor.

    Args:
        model: an unmodified `LlavaForConditionalGeneration`.
        processor: its processor.
        prompt: template with `<image>` and `{question}`.
        cache_bytes: bound of the tower's state cache.
    """

    def __init__(self, model: nn.Module, processor: Any, prompt: str, cache_bytes: int = 768 * 2**20) -> None:
        self.model, self.processor, self.prompt = model, processor, prompt
        self.tokenizer = processor.tokenizer
        self.language = model.model.language_model
        self.embed = model.get_input_embeddings()
        self.cache = StateCache(cache_bytes)
        self.tower = VisionTower(model, self.cache)
        self.clip_text: Any = None  # texts -> (B, M, D_clip), set where CLIP's text tower is given
        self.seconds: Counter[str] = Counter()
        self.seen: dict[str, int] = {}  # fingerprints of prepared images by name
        gpu = self.device.type == "cuda"
        self.static = StaticSteps(on=gpu, capture=gpu)
        if "{question}" not in prompt or prompt.count("<image>") != 1:
            raise InputError(f"prompt must hold one <image> and {{question}}, got {prompt!r}")

    @property
    def visual_tokens(self) -> int:
        """The full number of visual tokens of one image."""
        return self.tower.patches

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the wall time of the block to `seconds[name]`."""
        start = perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[name] += perf_counter() - start

    # --- vision -----------------------------------------------------------------------------------------
    def prepare(self, name: str, image: Image.Image) -> Prepared | Image.Image:
        """What `answer` takes in place of the image; may be made in another thread, before its turn."""
        pixels = self._process([image])
        self.seen[name] = int(fingerprint(pixels))
        return Prepared(self.seen[name], pixels)

    def known(self, name: str, load: Callable[[], Image.Image], pruner: Pruner) -> Prepared | None:
        """An image that was prepared before, if the cache has all that the method needs of it; else None.

        Args:
            load: reads the image, should it be needed after all.
        """
        seed = self.seen.get(name)
        if seed is None or not self.tower.knows(seed, pruner):
            return None
        return Prepared(seed, lambda: self._process([load()]))

    def pixels(self, images: Sequence[Image.Image | Prepared]) -> Tensor | Pixels:
        """PIL images -> (B, 3, H, W); prepared ones stay what they are.

        Raises:
            InputError: some are prepared and some are not.
        """
        ready = [image for image in images if isinstance(image, Prepared)]
        if ready and len(ready) < len(images):
            raise InputError(f"expected images all prepared or none, got {len(ready)} prepared of {len(images)}")
        return Pixels(ready, self.device) if ready else self._process(images).to(self.device)  # type: ignore[arg-type]

    def _process(self, images: list[Image.Image]) -> Tensor:
        """(B, 3, H, W) on the CPU."""
        rgb = [image.convert("RGB") for image in images]
        return self.processor.image_processor(images=rgb, return_tensors="pt")["pixel_values"]

    def expect(self, pruner: Pruner) -> None:
        """Every pass of the tower from now on leaves the states that this method starts from in the cache."""
        self.tower.remembered = self.tower.places(pruner)

    @torch.no_grad()
    def prune(
        self, pixels: Tensor | Pixels, pruner: Pruner, questions: list[list[str]] | None = None
    ) -> VisualTokens:
        """Pruned tokens before the projector.

        Args:
            pixels: (B, 3, H, W).
            questions: the questions of each image; needed where `by_question`.

        Returns:
            One row an image, (B, K, D); one row a question, in order, where the method reads the question.
        """
        seed = fingerprint(pixels)
        with self.stage("tower"):
            tokens = self.tower.survivors(pixels, pruner, seed)
        if not self.by_question(pruner):
            with self.stage("selection"):
                return pruner.finish(tokens)
        if questions is None:
            raise InputError(f"{type(pruner).__name__} reads the question: give the questions of each image")
        with self.stage("selection"):
            tokens = tokens.rows(torch.tensor(image_of_question(questions), device=self.device))
            return pruner.finish(tokens, self.read([q for asked in questions for q in asked]))

    def by_question(self, pruner: Pruner) -> bool:
        """Whether the questions of an image get tokens of their own; never at the full budget, the identity."""
        return pruner.reads_question and pruner.keeps(self.visual_tokens) < self.visual_tokens

    def read(self, questions: list[str]) -> Any:
        """What a text-aware method sees of the questions."""
        return read_questions([unmarked(q) for q in questions], self.tokenizer, self.embed, self.clip_text)

    def project(self, tokens: VisualTokens) -> Tensor:
        """(B, K, D) -> (B, K, D_llm) in the language model's dtype; K may be 0."""
        return self.tower.projector(tokens.hidden).to(self.embed.weight.dtype)

    # --- language ---------------------------------------------------------------------------------------
    def prompt_ids(self, question: str) -> tuple[list[int], list[int]]:
        """Token ids before and after the image."""
        ids = self.tokenizer(self.prompt.format(question=unmarked(question)))["input_ids"]
        image = self.model.config.image_token_id
        if ids.count(image) != 1:
            raise InputError(f"the prompt of {question!r} holds {ids.count(image)} image tokens, expected 1")
        cut = ids.index(image)
        return ids[:cut], ids[cut + 1 :]

    @torch.no_grad()
    def answer(
        self,
        images: Sequence[Image.Image | Prepared],
        questions: list[list[str]],
        pruner: Pruner,
        max_new_tokens: int = 16,
        shifts: bool = True,
    ) -> list[list[Answer]]:
        """Greedy answers to every question of every image.

        Args:
            images: all PIL's or all prepared.
            shifts: measure the shift metrics too, which needs the whole tower.

        Raises:
            InputError: budget out of range, or an image without a question.
        """
        if not all(questions):
            raise InputError(f"every image needs a question; image {questions.index([])} has none")
        with self.stage("image processing"):
            pixels = self.pixels(images)
        tokens = self.prune(pixels, pruner, questions)
        with self.stage("projector"):
            visual = self.project(tokens)
        prompts = [self.prompt_ids(q) for asked in questions for q in asked]
        with self.stage("prefill"):  # of the image's prefix; the questions follow
            rows = rows_of(questions, visual, self.by_question(pruner))
            pack = self._pack(*self._shared(rows, visual, prompts), prompts, pruner)
        texts, first = self._greedy(pack, max_new_tokens)
        with self.stage("shift"):
            found = self._shifts(tokens, pixels, rows) if shifts else {row: {} for row in rows.distinct}
        answers = [
            self._answer(text, logits, tokens, row, found[rows.first[row]])
            for text, logits, row in zip(texts, first, rows.of_question)
        ]
        if isinstance(pack, WholePrompts):
            pack.tell(answers)
        return regrouped(answers, questions)

    def _shared(
        self, rows: Rows, visual: Tensor | list[Tensor], prompts: list[tuple[list[int], list[int]]]
    ) -> tuple[Tensor | list[Tensor], list[int]]:
        """The rows of `visual` that become prefixes, and for each question the place of its row among them."""
        before = len(prompts[0][0])
        prefix = rows.prefixes([before + len(row) for row in visual], [len(after) for _, after in prompts])
        read = sorted(set(prefix))
        place = {row: at for at, row in enumerate(read)}
        chosen = visual if len(read) == len(visual) else [visual[row] for row in read]
        return chosen, [place[prefix[row]] for row in rows.of_question]

    def _shifts(self, tokens: VisualTokens, pixels: Tensor | Pixels, rows: Rows) -> dict[int, dict[str, float]]:
        """All shift metrics of each distinct row, by its number, against its image's unpruned tokens; zero for all
        tokens, empty for none.
        """
        from pruning.shift import METRICS, all_shifts

        kept = self._sets(tokens)
        if not len(kept[0]):
            return {row: {} for row in rows.distinct}
        found: dict[int, dict[str, float]] = {}
        for image, known in enumerate(self._statistics(tokens, pixels, rows.image)):
            own = [row for row in rows.distinct if rows.image[row] == image]
            if len(kept[own[0]]) >= known.tokens.shape[1]:
                found |= {row: dict.fromkeys(METRICS, 0.0) for row in own}
                continue
            values = all_shifts(torch.stack([kept[row] for row in own]), known)
            columns = {name: value.tolist() for name, value in values.items()}
            found |= {row: {name: column[at] for name, column in columns.items()} for at, row in enumerate(own)}
        return found

    def _sets(self, tokens: VisualTokens) -> list[Tensor]:
        """Each row's kept tokens, (K, D)."""
        return list(tokens.hidden)

    def _seeds(self, tokens: VisualTokens, pixels: Tensor | Pixels, image_of_row: list[int]) -> list[int]:
        """What names each image in the cache."""
        first = {image: row for row, image in reversed(list(enumerate(image_of_row)))}
        return [int(tokens.seed[first[image]]) for image in range(len(pixels))]  # type: ignore[index]

    def _full_sets(self, pixels: Tensor | Pixels, which: list[int], seeds: list[int]) -> list[Tensor]:
        """The unpruned tokens of images `which`, (N, D) each."""
        return list(self.tower.full(pixels[which], torch.tensor([seeds[b] for b in which])).hidden)

    def _statistics(self, tokens: VisualTokens, pixels: Tensor | Pixels, image_of_row: list[int]) -> list[Any]:
        """The full set's side of the shift metrics, one an image, kept for the next method and budget."""
        from pruning.sets import statistics

        seeds = self._seeds(tokens, pixels, image_of_row)
        found = [self.cache.get(seed, "statistics") for seed in seeds]
        missing = [b for b, known in enumerate(found) if known is None]
        if missing:
            for b, hidden in zip(missing, self._full_sets(pixels, missing, seeds)):
                found[b] = statistics(hidden[None])
                tokens_bytes = found[b].tokens.numel() * found[b].tokens.element_size()
                self.cache.put(seeds[b], "statistics", found[b], 2 * tokens_bytes)  # its lazy parts: as much again
        return found

    def _answer(self, text: str, logits: Tensor, tokens: VisualTokens, row: int, shifts: dict[str, float]) -> Answer:
        index = tokens.index[row].tolist()
        trace = {name: x[row] for name, x in tokens.trace.items()}
        return self._checked(text, logits, tokens.hidden[row], index, shifts, trace)

    @staticmethod
    def _checked(
        text: str,
        logits: Tensor,
        hidden: Tensor,
        index: list[int],
        shifts: dict[str, float],
        trace: dict[str, Tensor],
    ) -> Answer:
        """The answer, failed where features or logits are not finite."""
        failed = None
        if not bool(torch.isfinite(hidden).all() and torch.isfinite(logits).all()):
            text, failed = "", "NaN or infinite features"
        return Answer(text, len(index), index, logits, shifts, trace, failed)

    def _pack(
        self,
        visual: Tensor | list[Tensor],
        owner: list[int],
        prompts: list[tuple[list[int], list[int]]],
        pruner: Pruner,
    ) -> PackedPrompts | WholePrompts:
        """Q questions ready for prefill: question q, ids (before, after) the image, on visual row `owner[q]`."""
        if pruner.inside_language_model:
            return WholePrompts(self, visual, owner, prompts, pruner)
        return PackedPrompts(self, visual, owner, prompts)

    def _greedy(self, pack: PackedPrompts | WholePrompts, max_new_tokens: int) -> tuple[list[str], Tensor]:
        """Greedy decoding: the Q decoded answers and the logits (Q, V) of their first tokens, float32 on the CPU."""
        with self.stage("prefill"):
            first = logits = pack.prefill([1] * pack.questions)[:, 0]
        eos = self._eos()
        done = torch.zeros(pack.questions, dtype=torch.bool, device=self.device)
        out: list[Tensor] = []
        with self.stage("decode"):
            advance = self.static.follow(pack, max_new_tokens - 1)
            for step in range(max_new_tokens):
                chosen = logits.argmax(-1)
                out.append(chosen)
                done |= torch.isin(chosen, eos)
                look = step < 4 or step % 4 == 0 or not self.static.on  # a GPU would have to wait for us
                if (look and bool(done.all())) or step + 1 == max_new_tokens:
                    break
                logits = advance(chosen)
            rows = torch.stack(out, 1).tolist()
        stop = set(eos.tolist())
        cut = [row[: next((i for i, t in enumerate(row) if t in stop), len(row))] for row in rows]
        return self.tokenizer.batch_decode(cut, skip_special_tokens=True), first.float().cpu()

    @torch.no_grad()
    def score(
        self,
        images: Sequence[Image.Image | Prepared],
        questions: list[list[str]],
        continuations: list[list[str]],
        pruner: Pruner,
    ) -> list[list[tuple[float, bool]]]:
        """Mean negative log-likelihood (nats a token) of each continuation, and whether greedy decoding says it."""
        tokens = self.prune(self.pixels(images), pruner, questions)
        visual, flat = self.project(tokens), [q for asked in questions for q in asked]
        owner = list(range(len(flat))) if self.by_question(pruner) else image_of_question(questions)
        said = [text for texts in continuations for text in texts]
        tails = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in said]
        prompts = [(before, after + tail) for (before, after), tail in zip(map(self.prompt_ids, flat), tails)]
        with self.stage("scoring"):
            logits = self._pack(visual, owner, prompts, pruner).prefill([len(tail) + 1 for tail in tails])
            logp = logits.float().log_softmax(-1)  # (Q, longest tail + 1, V)
        out = []
        for row, tail in zip(logp, tails):
            ids = torch.tensor(tail, device=self.device)
            own = row[-len(tail) - 1 : -1]  # the distributions that predict the tail's tokens
            out.append((float(-own.gather(1, ids[:, None]).mean()), bool((own.argmax(-1) == ids).all())))
        return regrouped(out, continuations)

    def _eos(self) -> Tensor:
        """(E,) the ids that end an answer."""
        eos = self.model.generation_config.eos_token_id
        eos = self.tokenizer.eos_token_id if eos is None else eos
        return torch.tensor(eos if isinstance(eos, list) else [eos], device=self.device)
