"""Put stores where tests want them: the bytes of each are made once in a process."""

import json
import tempfile
from pathlib import Path

from logitstore.format.spec import StoreSpec
from logitstore.testing import stores

_JOURNAL = ".journal.jsonl"
_MADE: dict[str, dict[str, bytes]] = {}


def put(
    path: Path,
    store_spec: StoreSpec | None = None,
    boundaries: tuple[int, ...] = (0, 3, 7, 12),
    *,
    parts: int = 1,
) -> StoreSpec:
    """Leave what `stores.write` does, its journal too, in a folder that is not there yet."""
    store_spec = store_spec or stores.spec()
    path.mkdir(parents=True)
    for name, data in _files(store_spec, boundaries, parts).items():
        file = path.with_name(path.name + _JOURNAL) if name == _JOURNAL else path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return store_spec


def _files(store_spec: StoreSpec, boundaries: tuple[int, ...], parts: int) -> dict[str, bytes]:
    key = json.dumps([vars(store_spec), boundaries, parts], sort_keys=True)
    if key not in _MADE:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "s"
            stores.write(made, store_spec, boundaries, parts=parts)
            journal = made.with_name(made.name + _JOURNAL).read_bytes()
            _MADE[key] = stores.tree(made) | {_JOURNAL: journal}
    return _MADE[key]
