"""Everything a user can get wrong: one line on stderr, exit status 2, nothing written (design.md section 9)."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import pruning
from eval import lmms_cli, point
from eval.records import Record
from pruning.errors import InputError
from tests.sandbox import call, encoded, picture, refused, write_data

ROOT = Path(__file__).resolve().parent.parent
COMMAND_LINES = {
    "budget=0": "budget must be between 1 and 576, got 0",
    "budget=-3": "budget must be between 1 and 576, got -3",
    "budget=577": "budget must be between 1 and 576, got 577",
    "budget=many": "budget must be an integer, got 'many'",
    "budget=16.5": "budget must be an integer, got '16.5'",
    "method=acgr_tatc": "unknown method 'acgr_tatc'; did you mean acgr_tatcs",
    "method=xyzzy": "unknown method 'xyzzy'; `python run.py --help` lists the choices",
    "model=mimi": "unknown model 'mimi'; did you mean mini",
    "tasks=embeded": "unknown tasks 'embeded'; did you mean embedded",
    "tasks.names=[mini_pop]": "unknown task 'mini_pop'; did you mean mini_pope",
    "tasks.names=[]": "tasks.names is empty",
    "tasks.split=train": "tasks.split must be one of test, dev, got 'train'",
    "tasks.data_dir=/nowhere": "no data for the embedded tasks",
    "method.metric=gausian_kl": "unknown shift metric 'gausian_kl'; did you mean gaussian_kl",
    "method.threshold=high": "threshold of acgr_tatcs must be a number (default",
    "method.treshold=1": "unknown option 'method.treshold'",
    "budgt=16": "unknown option 'budgt'; did you mean budget?",
    "--budget=16": "unknown option --budget; options have no dashes here: budget=VALUE",
    "budget": "",
    "limit=0": "limit must be at least 1 image (or null for all), got 0",
    "limit=few": "limit must be an integer, got 'few'",
    "pictures=-1": "pictures must be 0 or more, got -1",
    "batch_size=0": "batch_size must be auto or at least 1 image, got 0",
    "dtype=float8": "dtype must be one of auto, float32, bfloat16, float16, got 'float8'",
    "device=tpu": "device must be one of auto, cpu, cuda, got 'tpu'",
    "force=perhaps": "force must be true or false, got 'perhaps'",
    "model.path=./no/such/folder": "model folder './no/such/folder' not found",
    "model.path=nobody/no-such-model": "nobody/no-such-model",
    "=3": "`python run.py --help` lists the choices",
    "method=3": "`python run.py --help` lists the choices",
    "tasks.names=mini_gqa": "tasks.names must be a list: tasks.names=[one,two]",
    "tasks.split=../x": "tasks.split must be a folder's name",
    "model.name=../x": "model.name must be a folder's name: no '/', no '.' or '_' in front, got '../x'",
    "model.cache_mb=-1": "model.cache_mb must be 0 or more, got -1",
    "model.clip_text=/nonexistent": "folder '/nonexistent' not found; set model.clip_text to a folder",
    "batch_size=true": "batch_size must be auto or at least 1 image, got True",
    "model.prompt='{question}'": "prompt must hold one <image>",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_data(tmp_path_factory.mktemp("data"), [encoded(picture(i)) for i in range(2)])
    return f"tasks.data_dir={folder}"


@pytest.mark.parametrize("word", COMMAND_LINES)
def test_command_line(
    word: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = [data, f"out={tmp_path / 'out'}", word]
    assert COMMAND_LINES[word] in refused(capsys, *[w for w in words if w.split("=")[0] != word.split("=")[0]], word)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [{"tau": "x"}, {"tau": np.nan}, {"layers": 3}, {"neighbours": 2.5}])
def test_hyper_parameter_from_python(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(wrong))} of acgr must be .* \\(default .*\\), got "):
        pruning.load("acgr", 16, **wrong)


def test_numbers_of_numpy_are_numbers() -> None:
    made = pruning.load("acgr", np.int64(16), tau=np.float64(0.25), neighbours=np.int32(2), layers=np.array([0.5]))
    assert made == pruning.load("acgr", 16, tau=0.25, neighbours=2, layers=[0.5])
    assert type(made.budget) is type(made.neighbours) is int


def test_lmms_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in ([], "expected one argument"), (["/nowhere"], "no parquet files for task 'pope'"):
        with pytest.raises(SystemExit, match="2"):
            lmms_cli.main(["--model", "dcp_prune", "--tasks", "pope", "--data_dir", *words])
        assert expected in capsys.readouterr().err.strip().splitlines()[-1]


def test_gpu_that_is_not_there(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "torch sees no GPU" in refused(capsys, data, f"out={tmp_path / 'out'}", "device=cuda")


def test_model_folders(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "model"
    broken.mkdir()
    words = (data, f"out={tmp_path / 'out'}", f"model.path={broken}")
    assert "holds no config.json" in refused(capsys, *words)
    (broken / "config.json").write_text("{")
    assert "is not valid JSON" in refused(capsys, *words)
    (broken / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    assert "is a GPT2LMHeadModel, expected LlavaForConditionalGeneration" in refused(capsys, *words)
    shutil.copy(ROOT / "models" / "mini" / "config.json", broken)
    assert f"cannot load model '{broken}'" in refused(capsys, *words)
    assert not (tmp_path / "out").exists()


def test_folder_that_is_no_record(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mini" / "test" / "uniform" / "16"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    assert "is not a record of a run" in refused(capsys, data, f"out={tmp_path}", "method=uniform", "budget=16")
    assert (folder / "notes.txt").read_text() == "mine"


def test_folder_that_cannot_be_written(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    line = refused(capsys, data, f"out={tmp_path / 'file'}", "method=vanilla")
    assert "cannot write" in line and "choose another out=" in line


def test_full_disk(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(point, "fill", full)
    assert call(data, f"out={tmp_path}", "method=vanilla", "tasks.names=[mini_gqa]", "limit=1") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: disk full while writing") and not list(tmp_path.rglob("metrics.json"))
    monkeypatch.undo()
    assert call(data, f"out={tmp_path}", "method=vanilla", "tasks.names=[mini_gqa]", "limit=1") == 0


def test_images_and_questions(tmp_path: Path) -> None:
    """Broken images fail alone; odd ones are answered; so are questions without content words or with a marker."""
    good = encoded(picture(0))
    photo = encoded(Image.effect_noise((400, 300), 60), "JPEG")
    images = {
        "good": good,
        "corrupt": b"not an image at all",
        "empty": b"",
        "truncated": photo[: len(photo) // 2],
        "cmyk": encoded(Image.new("CMYK", (64, 48), (10, 200, 30, 0)), "JPEG"),
        "one pixel": encoded(Image.new("RGB", (1, 1))),
        "large": encoded(Image.new("L", (3000, 2000))),
        "too narrow": encoded(Image.new("L", (4000, 2))),
        "bomb": encoded(Image.new("1", (16000, 12000))),
        "no question words": good,
        "marker": good,
    }
    data = write_data(tmp_path / "data", list(images.values()), {9: "Is it?", 10: "What <image>color is the square?"})
    drop_picture(data, 9)
    assert call(f"tasks.data_dir={data}", f"out={tmp_path}", "method=tatcs", "budget=16", "pictures=1") == 0
    samples = pd.read_parquet(tmp_path / "mini" / "test" / "tatcs" / "16" / "samples.parquet")
    asked = samples[samples.task == "mini_gqa"].set_index("image_id")
    failed, names = asked.failed, dict(zip(asked.index, images))
    reasons = {names[i]: reason for i, reason in failed.items() if isinstance(reason, str)}
    assert set(reasons) == {"corrupt", "empty", "truncated", "too narrow", "bomb", "no question words"}
    assert "got 0" in reasons["no question words"]
    assert asked.question.iloc[10] != asked.question.iloc[0] and asked.prediction.iloc[10] == asked.prediction.iloc[0]
    # the decoder's own refusal or ours, whichever comes first
    assert any(word in reasons["bomb"] for word in ("too large", "exceeds limit"))
    assert samples.score.isna().equals(samples.failed.notna())
    metrics = json.loads((tmp_path / "mini" / "test" / "tatcs" / "16" / "metrics.json").read_text())
    assert metrics["failed"] == int(samples.failed.notna().sum()) == 36


def drop_picture(data: Path, number: int) -> None:
    """Takes an image out of images.parquet's rows but not out of the questions."""
    file = data / "test" / "images.parquet"
    table = pd.read_parquet(file)
    table.loc[number, "image"] = None
    table.to_parquet(file)


def test_nan_features(data: str, tmp_path: Path) -> None:
    """One image's features are NaN: its questions fail, the other's are answered."""
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore

    from eval.settings import Config, check

    ConfigStore.instance().store("schema", Config)
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose(
            "config", ["method=uniform", "tasks.names=[mini_gqa]", data, f"out={tmp_path}", "pictures=0"]
        )
    plan = check(config, "uniform")
    llava = point.load_model(plan)

    def poison(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:1] * float("nan"), output[1:]])

    llava.cache.clear()
    handle = llava.tower.clip.embeddings.register_forward_hook(poison)
    try:
        point.ensure(plan, None)
    finally:
        handle.remove()
        llava.cache.clear()
    samples = pd.read_parquet(Record(plan).folder / "samples.parquet")
    assert samples.failed[0] == "NaN or infinite features" and pd.isna(samples.failed[1])
    assert samples.score.isna().tolist() == [True, False]
