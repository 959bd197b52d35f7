"""Write the teacher's output embedding: a file beside the shards, whole or not at all.

Whoever has the teacher writes it, if it is not there; it is the same bytes whoever does. A store
that says that it has one is not sealed before it does.
"""

from logitstore.errors import MismatchError
from logitstore.format.lm_head import LmHead, build_lm_head
from logitstore.format.spec import LM_HEAD_FILE, StoreSpec
from logitstore.format.zip_archive import pack
from logitstore.reading.lm_head import damaged, open_lm_head
from logitstore.storage.commit import Fs
from logitstore.storage.paths import StorePath


def write_lm_head(store: StorePath, spec: StoreSpec, head: LmHead, fs: Fs) -> None:
    """Commit the output embedding of a store's teacher; nothing changes where it is there.

    Raises:
        ValueError: It is not that of the store's teacher.
    """
    (store / LM_HEAD_FILE).create(list(pack(build_lm_head(spec, head))), fs)


def copy_lm_head(store: StorePath, source: StorePath, fs: Fs) -> None:
    """Commit the output embedding of another store of the same content, byte for byte.

    Raises:
        CorruptStoreError: Its bytes are not those that were committed there.
    """
    archive = open_lm_head(source)
    archive.check_digest()
    (store / LM_HEAD_FILE).create(archive.whole.pieces(), fs)


def check_same_lm_head(one: StorePath, other: StorePath) -> None:
    """Check that two stores of one content have one output embedding.

    Raises:
        MismatchError: They have not.
    """
    if open_lm_head(one).digest != open_lm_head(other).digest:
        raise MismatchError(
            f"{one} and {other}: their {LM_HEAD_FILE} are not the same, though their teacher is. "
            "See `logitstore verify` of both, and leave the one that is wrong out."
        )


def check_there(store: StorePath, spec: StoreSpec) -> None:
    """Check that the output embedding is there, if the store should have it.

    Raises:
        CorruptStoreError: It is not.
    """
    if lacks_lm_head(store, spec):
        raise damaged(store, "the file is missing", "missing-file")


def lacks_lm_head(store: StorePath, spec: StoreSpec) -> bool:
    """Tell whether a store should have an output embedding, and has none yet."""
    return spec.has_head and not (store / LM_HEAD_FILE).exists()
