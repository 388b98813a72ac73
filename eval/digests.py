"""What tells two folders of one name apart without reading all of them: records hold no paths of the machine."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TAIL, HEAD = 2**16, 64  # bytes read at the end of a parquet file, and at the start of a tensor
LONGEST = 10**8  # bytes of a safetensors header, by its format


@functools.lru_cache(maxsize=8)
def of_data(folder: str) -> str:
    """Of a data folder: names, sizes and last bytes (parquet's own index) of its parquet files."""
    found = hashlib.blake2b(digest_size=8)
    for path in sorted(Path(folder).rglob("*.parquet")):
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            found.update(f"{path.relative_to(folder).as_posix()} {size} ".encode() + file.read())
    return found.hexdigest()


@functools.lru_cache(maxsize=8)
def of_model(folder: str) -> str:
    """Of a model's folder: its configurations, its tokenizer, and the first bytes of every tensor (safetensors).

    Two checkpoints of one architecture have files of the same names and sizes.
    """
    found = hashlib.blake2b(digest_size=8)
    for pattern in ("*config.json", "tokenizer.json", "*.safetensors"):
        for path in sorted(Path(folder).glob(pattern)):
            found.update(path.name.encode())
            with path.open("rb") as file:
                for part in heads(file) if path.suffix == ".safetensors" else [file.read()]:
                    found.update(part)
    return found.hexdigest()


def heads(file: BinaryIO) -> Iterator[bytes]:
    """The header of a safetensors file and the first bytes of each of its tensors; of a broken one what there is."""
    start = 8 + min(int.from_bytes(file.read(8), "little"), LONGEST)
    header = file.read(start - 8)
    yield header
    try:
        tensors = [tensor["data_offsets"][0] for name, tensor in json.loads(header).items() if name != "__metadata__"]
    except (ValueError, LookupError, TypeError, AttributeError):  # loading it will say what is wrong
        return
    for place in tensors:
        file.seek(start + place)
        yield file.read(HEAD)
