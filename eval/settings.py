"""The configuration's schema, and the checks that need no model: every bad value ends in one clear line."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from pruning.errors import InputError, one_of
from pruning.registry import CONFIGS as METHODS

ROOT = Path(__file__).resolve().parent.parent
TASKS = ROOT / "eval" / "tasks"
DTYPES, DEVICES = ("auto", "float32", "bfloat16", "float16"), ("auto", "cpu", "cuda")


@dataclass
class ModelConfig:
    """configs/model/*.yaml"""

    name: str = MISSING
    path: str = MISSING
    prompt: str = MISSING
    cache_mb: int = 768


@dataclass
class TasksConfig:
    """configs/tasks/*.yaml"""

    names: list[str] = MISSING
    split: str = "test"
    data_dir: str | None = None


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

    @property
    def subset(self) -> str:
        """The split's name in records; a limited run never mixes with a whole one."""
        return self.split if self.limit is None else f"{self.split}-first{self.limit}"

    @property
    def overrides(self) -> dict[str, Any]:
        """Hyper-parameters that differ from the method's YAML."""
        defaults = method_defaults(self.method)
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
    def identity(self) -> dict[str, Any]:
        """Everything that decides the numbers; no paths of the machine."""
        return {
            "model": {"name": self.model, "path": self.portable_path, "prompt": self.prompt},
            "method": {"name": self.method, **self.parameters},
            "budget": self.budget,
            "tasks": {"names": list(self.tasks), "split": self.split, "own_data": self.data_dir is not None},
            "limit": self.limit,
            "seed": self.seed,
            "dtype": self.dtype,
        }

    @property
    def portable_path(self) -> str:
        """The model's path without the machine's part: relative to the repository, else its last name."""
        path = Path(self.path)
        if not path.is_absolute():
            return self.path
        return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name

    def vanilla(self, full: int) -> Plan:
        """The unpruned point of the same model, tasks and images."""
        return replace(self, method="vanilla", parameters={}, budget=full, force=False, pictures=0)


def method_defaults(name: str) -> dict[str, Any]:
    """Hyper-parameters and defaults of a method's YAML, without target and budget."""
    config = OmegaConf.load(METHODS / f"{name}.yaml")
    config["budget"] = 1
    values = OmegaConf.to_container(config, resolve=True)
    return {key: value for key, value in values.items() if key not in ("_target_", "budget")}


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
    from models.load import check as check_model

    c: Config = config  # type: ignore[assignment]
    if c.limit is not None and c.limit < 1:
        raise InputError(f"limit must be at least 1 image (or null for all), got {c.limit}")
    if c.pictures < 0:
        raise InputError(f"pictures must be 0 or more, got {c.pictures}")
    if c.batch_size != "auto" and (not isinstance(c.batch_size, int) or c.batch_size < 1):
        raise InputError(f"batch_size must be auto or at least 1 image, got {c.batch_size}")
    one_of("dtype", c.dtype, DTYPES)
    one_of("device", c.device, DEVICES)
    path = Path(c.model.path).expanduser()
    path = str(ROOT / path) if (ROOT / path).exists() else str(path) if path.exists() else c.model.path
    check_model(path)
    full = visual_tokens(path)
    if c.budget < 1 or (full is not None and c.budget > full):
        top = full or "the model's number of visual tokens"
        raise InputError(f"budget must be between 1 and {top}, got {c.budget}")
    parameters = check_parameters(method, OmegaConf.to_container(config.method, resolve=True))
    fixed = {"vanilla": full, "blank": 0}  # controls that ignore the budget: one point of a sweep, not many
    budget = c.budget if fixed.get(method) is None else fixed[method]
    check_tasks(c.tasks)
    return Plan(
        model=c.model.name,
        path=path,
        prompt=c.model.prompt,
        cache_mb=c.model.cache_mb,
        method=method,
        parameters=parameters,
        budget=budget,
        tasks=tuple(c.tasks.names),
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


def check_parameters(method: str, given: Any) -> dict[str, Any]:
    """A method's hyper-parameters, where numbers are numbers as in its YAML."""
    values = {key: value for key, value in given.items() if key not in ("_target_", "budget")}
    for name, default in method_defaults(method).items():
        number = isinstance(default, int | float) and not isinstance(default, bool)
        value = values.get(name)
        if number and value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InputError(f"method.{name} must be a number (default {default}), got {value!r}")
    return values


def check_tasks(tasks: TasksConfig) -> None:
    """Raises InputError for unknown tasks, and for embedded data that is not there."""
    own = embedded_names()
    if not tasks.names:
        raise InputError(f"tasks.names is empty; name at least one of {', '.join(own)}")
    for name in tasks.names:
        if name not in own:
            known = [*own, *official_names()]
            if name not in known:
                raise InputError(f"unknown task '{name}'{did_you_mean(name, known)}")
    if set(tasks.names) & set(own):
        one_of("tasks.split", tasks.split, ("test", "dev"))
        folder = data_folder(tasks.data_dir, tasks.split)
        for name in ["images", *(set(tasks.names) & set(own))]:
            if not (folder / f"{name}.parquet").is_file():
                raise InputError(f"no data for the embedded tasks: '{folder / name}.parquet' not found")


def data_folder(data_dir: str | None, split: str) -> Path:
    """Where the parquet files of the embedded tasks lie."""
    return (TASKS / "data" if data_dir is None else Path(data_dir).expanduser()) / split


def embedded_names() -> list[str]:
    """The tasks of eval/tasks/*.yaml."""
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def official_names() -> list[str]:
    """Task and group names of lmms-eval, read from its files without importing it."""
    import re
    from importlib.util import find_spec

    spec = find_spec("lmms_eval")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "tasks"
    named = re.compile(r"^(?:task|group): *[\"']?([\w.-]+)", re.M)
    return sorted(
        {name for path in folder.rglob("*.yaml") for name in named.findall(path.read_text(errors="replace"))}
    )


def visual_tokens(path: str) -> int | None:
    """Patches of one image by the model's config.json; None where the model is not on this machine yet."""
    file = Path(path) / "config.json"
    if not file.is_file():
        return None
    vision = json.loads(file.read_text()).get("vision_config", {})
    if "image_size" not in vision or "patch_size" not in vision:
        return None
    return (vision["image_size"] // vision["patch_size"]) ** 2


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean a or b?`, or the command that lists the choices."""
    near = difflib.get_close_matches(name, list(known), 3, 0.5)
    return f"; did you mean {' or '.join(near)}?" if near else "; `python run.py --help` lists the choices"


def public(plan: Plan) -> dict[str, Any]:
    """The resolved configuration for the record, without paths of the machine."""
    hidden = ("path", "data_dir", "out", "force", "tracking")
    values = {key: value for key, value in asdict(plan).items() if key not in hidden}
    return {**values, "tasks": list(plan.tasks), "path": plan.portable_path, "own_data": plan.data_dir is not None}
