"""The configuration's schema, and the checks that need no model: every bad value ends in one clear line."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from eval import digests
from models.load import DTYPES
from models.load import check as check_model
from models.shape import Shape, read_shape
from pruning import registry
from pruning.errors import InputError, one_of

ROOT = Path(__file__).resolve().parent.parent
TASKS = ROOT / "eval" / "tasks"
DEVICES = ("auto", "cpu", "cuda")


@dataclass
class ModelConfig:
    """configs/model/*.yaml"""

    name: str = MISSING
    path: str = MISSING
    published: str | None = None
    prompt: str = MISSING
    image_protocol: str | None = None
    newline: str | None = None
    unpad: bool | None = None
    clip_text: str | None = None
    cache_mb: int = 768


@dataclass
class TasksConfig:
    """configs/tasks/*.yaml"""

    names: list[str] = MISSING
    split: str = "test"
    data_dir: str | None = None
    max_new_tokens: int | None = None
    ocr: bool | None = None


@dataclass
class Config:
    """configs/config.yaml; Hydra checks names and types against it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    method: Any = MISSING
    tasks: TasksConfig = field(default_factory=TasksConfig)
    tracking: Any = MISSING
    budget: int = 16
    limit: int | None = None
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    batch_size: Any = "auto"
    pictures: int = 4
    out: str = "outputs"
    force: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Plan:
    """One checked point: what will run, and where its record goes."""

    model: str
    path: str
    prompt: str
    cache_mb: int
    method: str
    parameters: dict[str, Any]  # all hyper-parameters of the method but the budget
    budget: int
    tasks: tuple[str, ...]
    split: str
    data_dir: str | None
    limit: int | None
    seed: int
    dtype: str
    device: str
    batch_size: int | None
    pictures: int
    out: Path
    force: bool
    tracking: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)  # of models.load.load: image_protocol ... where given
    protocol: dict[str, Any] = field(default_factory=dict)  # of the tasks: max_new_tokens, ocr where given
    shape: Shape | None = None  # the model's sizes, where they can be known before it is loaded

    @property
    def subset(self) -> str:
        """The split's name in records; a limited run never mixes with a whole one."""
        return self.split if self.limit is None else f"{self.split}-first{self.limit}"

    @property
    def overrides(self) -> dict[str, Any]:
        """Hyper-parameters that differ from the method's YAML."""
        defaults = registry.defaults(self.method)
        return {name: value for name, value in self.parameters.items() if defaults.get(name) != value}

    @property
    def label(self) -> str:
        """The method's name, with a hash where hyper-parameters differ from its YAML."""
        return f"{self.method}-{short_hash(self.overrides)}" if self.overrides else self.method

    @property
    def folder(self) -> Path:
        """Where the record of this point lies."""
        return self.out / self.model / self.subset / self.label / str(self.budget)

    @property
    def own_data(self) -> str | bool:
        """False for the data of the repository or the hub, else what tells the folder's content apart."""
        return False if self.data_dir is None else digests.of_data(self.data_dir)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the numbers; no paths of the machine."""
        return {
            "model": {
                "name": self.model,
                "path": named(self.path),
                "prompt": self.prompt,
                **{name: named(value) if name == "clip_text" else value for name, value in self.options.items()},
            },
            "method": {"name": self.method, **self.parameters},
            "budget": self.budget,
            "tasks": {"names": list(self.tasks), "split": self.split, "own_data": self.own_data} | self.protocol,
            "limit": self.limit,
            "seed": self.seed,
            "dtype": self.dtype,
        }

    def vanilla(self, full: int) -> Plan:
        """The unpruned point of the same model, tasks and images."""
        return replace(self, method="vanilla", parameters={}, budget=full, force=False, pictures=0)


def portable(value: Any) -> Any:
    """A path without the machine's part: relative to the repository, else its last name; other values as they are."""
    path = Path(value) if isinstance(value, str) else None
    if path is None or not path.is_absolute():
        return value
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def named(path: str) -> str:
    """A model in a record: `portable`, and for a folder what tells its content apart; a hub name as it is."""
    return f"{portable(path)}@{digests.of_model(path)}" if Path(path).is_dir() else portable(path)


def own_budget(method: str, asked: int, full: int | None) -> int:
    """The budget that counts: the one asked for, or the one that a control's YAML holds (null: all `full` tokens).

    A control that ignores the budget is thus one point of a sweep, not many.
    """
    written = OmegaConf.to_container(registry.read(method), resolve=False).get("budget", asked)
    if written is None and full is not None:
        return full
    return written if isinstance(written, int) else asked


def short_hash(value: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of a mapping's content."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def check(config: DictConfig, method: str) -> Plan:
    """Everything that can be checked before torch is imported.

    Args:
        config: the composed configuration.
        method: the chosen file of configs/method.

    Raises:
        InputError: a value that cannot work; says which, what was expected and what to do.
    """
    c: Config = config  # type: ignore[assignment]
    if c.limit is not None and c.limit < 1:
        raise InputError(f"limit must be at least 1 image (or null for all), got {c.limit}")
    if not 0 <= c.seed < 2**32:
        raise InputError(f"seed must be between 0 and {2**32 - 1}, got {c.seed}")
    check_prompt(c.model.prompt)
    if c.pictures < 0:
        raise InputError(f"pictures must be 0 or more, got {c.pictures}")
    whole = isinstance(c.batch_size, int) and not isinstance(c.batch_size, bool)
    if c.batch_size != "auto" and not (whole and c.batch_size > 0):
        raise InputError(f"batch_size must be auto or at least 1 image, got {c.batch_size}")
    if c.model.cache_mb < 0:
        raise InputError(f"model.cache_mb must be 0 or more, got {c.model.cache_mb}")
    for option, name in {"model.name": c.model.name, "tasks.split": c.tasks.split}.items():
        if not name or name[0] in "._" or "/" in name:  # the report passes over hidden folders
            raise InputError(f"{option} must be a folder's name: no '/', no '.' or '_' in front, got '{name}'")
    one_of("dtype", c.dtype, DTYPES)
    one_of("device", c.device, DEVICES)
    path = found(c.model.path)
    check_model(path)
    shape = read_shape(path, c.model.published)
    options = model_options(c.model, shape)
    full = shape and shape.visual_tokens
    if c.budget < 1 or (full is not None and c.budget > full):
        top = full or "the model's number of visual tokens"
        raise InputError(f"budget must be between 1 and {top}, got {c.budget}")
    given: dict[str, Any] = OmegaConf.to_container(config.method, resolve=True)  # type: ignore[assignment]
    parameters = registry.checked(method, {key: given[key] for key in given if key not in ("_target_", "budget")})
    check_tasks(c.tasks, c.limit)
    return Plan(
        model=c.model.name,
        path=path,
        prompt=c.model.prompt,
        options=options,
        shape=shape,
        cache_mb=c.model.cache_mb,
        method=method,
        parameters=parameters,
        budget=own_budget(method, c.budget, full),
        tasks=tuple(c.tasks.names),
        protocol={name: c.tasks[name] for name in ("max_new_tokens", "ocr") if c.tasks[name] is not None},
        split=c.tasks.split,
        data_dir=None if c.tasks.data_dir is None else str(Path(c.tasks.data_dir).expanduser().resolve()),
        limit=c.limit,
        seed=c.seed,
        dtype=c.dtype,
        device=c.device,
        batch_size=None if c.batch_size == "auto" else c.batch_size,
        pictures=c.pictures,
        out=Path(c.out).expanduser(),
        force=c.force,
        tracking=OmegaConf.to_container(config.tracking, resolve=True),  # type: ignore[arg-type]
    )


def found(path: str) -> str:
    """The absolute path of a folder in the repository, or else on the machine; a hub name as it is."""
    here = Path(path).expanduser()
    return next((os.path.abspath(place) for place in (ROOT / here, here) if place.exists()), path)


def model_options(model: ModelConfig, shape: Shape | None) -> dict[str, Any]:
    """Arguments of `models.load.load` that are given, and the defaults of LLaVA-NeXT.

    Raises:
        InputError: a switch that this model does not have.
    """
    values = {name: model[name] for name in ("image_protocol", "newline", "unpad", "clip_text")}  # type: ignore[index]
    if values["newline"] is not None:
        one_of("model.newline", values["newline"], ("keep", "drop"))
    if values["image_protocol"] is not None:
        one_of("model.image_protocol", values["image_protocol"], ("pad", "crop"))
    if values["clip_text"] is not None:
        values["clip_text"] = found(values["clip_text"])
    cuts = shape is not None and shape.crops > 1
    if cuts and values["image_protocol"] is not None:
        raise InputError("model.image_protocol is a choice for LLaVA-1.5; LLaVA-NeXT cuts crops of its own; use null")
    if cuts:
        values["newline"] = values["newline"] or "drop"
        values["unpad"] = True if values["unpad"] is None else values["unpad"]
    elif shape is not None:
        wrong = [name for name in ("newline", "unpad") if values[name] is not None]
        if wrong:
            raise InputError(f"model.{wrong[0]} is a choice for LLaVA-NeXT; this model cuts no crops; use null")
    return {name: value for name, value in values.items() if value is not None}


def check_tasks(tasks: TasksConfig, limit: int | None) -> None:
    """Raises InputError for unknown tasks, embedded data that is not there, half a pair of MME's questions."""
    own = embedded_names()
    if tasks.max_new_tokens is not None and tasks.max_new_tokens < 1:
        raise InputError(f"tasks.max_new_tokens must be at least 1 (or null), got {tasks.max_new_tokens}")
    if "mme" in tasks.names and limit is not None and limit % 2:
        raise InputError(f"limit must be even for mme, whose questions come in pairs, got {limit}")
    if not tasks.names:
        raise InputError(f"tasks.names is empty; name at least one of {', '.join(own)}")
    for name in tasks.names:
        if name not in own:
            from eval.official import names

            known = [*own, *names()]
            if name not in known:
                raise InputError(f"unknown task '{name}'{did_you_mean(name, known)}")
    if set(tasks.names) & set(own):
        one_of("tasks.split", tasks.split, ("test", "dev"))
        folder = data_folder(tasks.data_dir, tasks.split)
        for name in ["images", *(set(tasks.names) & set(own))]:
            if not (folder / f"{name}.parquet").is_file():
                raise InputError(f"no data for the embedded tasks: '{folder / name}.parquet' not found")


def check_prompt(prompt: str) -> None:
    """Raises InputError where a prompt holds other fields than `{question}`."""
    try:
        prompt.format(question="")
    except (LookupError, ValueError) as error:
        raise InputError(f"model.prompt may hold the field {{question}} only, got {prompt!r}") from error


def data_folder(data_dir: str | None, split: str) -> Path:
    """Where the parquet files of the embedded tasks lie."""
    return (TASKS / "data" if data_dir is None else Path(data_dir).expanduser()) / split


def embedded_names() -> list[str]:
    """The tasks of eval/tasks/*.yaml."""
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def nearest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Known names that look like `name`, the likest first."""
    return difflib.get_close_matches(name, list(known), most, 0.5)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean a or b?`, or the command that lists the choices."""
    near = nearest(name, known)
    return f"; did you mean {' or '.join(near)}?" if near else "; `python run.py --help` lists the choices"


def public(plan: Plan) -> dict[str, Any]:
    """The resolved configuration for the record, without paths of the machine."""
    hidden = ("path", "options", "shape", "protocol", "data_dir", "out", "force", "tracking")
    values = {key: value for key, value in asdict(plan).items() if key not in hidden}
    switches = {name: portable(value) for name, value in {**plan.options, **plan.protocol}.items()}
    own = plan.data_dir is not None
    return {**values, **switches, "tasks": list(plan.tasks), "path": portable(plan.path), "own_data": own}
