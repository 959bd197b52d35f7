"""A capture run again with the settings that its store has recorded, for `repair --capture`."""

from logitstore.capture.settings import CaptureSettings
from logitstore.errors import InputError
from logitstore.format.spec import StoreHeader
from logitstore.storage.paths import StorePath


def capture_again(path: StorePath) -> None:
    """Capture what is missing with the teacher, dataset and settings that the store began with.

    Raises:
        InputError: The store has not recorded them, or teacher or dataset cannot be found.
        MismatchError: Teacher or dataset has changed.
    """
    provenance = StoreHeader.read(path).provenance
    settings = provenance.get("settings")
    teacher, dataset = (str(provenance.get(name, "")) for name in ("teacher", "dataset"))
    if "imported" in provenance:
        raise InputError(
            f"{path}: was imported from {dataset}, not captured. Run the same `logitstore import …`"
            " as then: it does only what is missing."
        )
    if not isinstance(settings, dict) or not teacher or not dataset:
        raise InputError(
            f"{path}: the store does not say how it was captured (it was written by an older "
            "version or from a dataset in memory). Run the same `logitstore capture …` as then."
        )
    from logitstore.capture.job import run_capture

    run_capture(teacher, dataset, path, CaptureSettings.from_recorded(settings))
