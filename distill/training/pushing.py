"""Push a student to the Hugging Face Hub with `--push_to_hub`: with its own card, and explained.

Trainer makes the repository before the first step and uploads while it trains. Its card would say
that this is a fine-tune of some dataset; the one that goes up here is that of the run. A hub that
cannot be reached is told before the first step; at the end it costs nothing, since the student is
saved by then.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from distill.data.example import Store
from distill.report.model_card import hub_id, write_card
from distill.report.results import RunObject
from distill.training.evaluating_trainer import EvaluatingTrainer
from distill.training.several_stores import OpenStores
from logitstore.errors import StorageError, in_a_line

#: How long the hub may take to say that it is there, before an upload that its client would try
#: again and again for minutes.
_ANSWERS_WITHIN_S = 10.0
#: Of a run's folder: what is for this machine, or is pickled.
_NOT_PUSHED = ("_*", "checkpoint-*", "training_args.bin", "optimizer.pt", "scheduler.pt")


class PushingTrainer(EvaluatingTrainer):
    """An `EvaluatingTrainer` whose student has its own card on the hub."""

    stores: OpenStores
    last_report: dict[str, float]
    #: What is known of the run besides, once it has ended.
    run: RunObject | None = None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, before the first step.

        Raises:
            StorageError: The hub cannot be reached, or refuses.
        """
        name = str(self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name)
        later = "Nothing was trained. Leave --push_to_hub out, and run `distill push` afterwards"
        with _explained(f"--push_to_hub {name}", later):
            super().init_hf_repo(token, private)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write the card of the run, instead of Trainer's."""
        if self.is_world_process_zero():
            folder = Path(str(self.args.output_dir))
            write_card(folder, self.run or self._known(), self.state.log_history)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Push as Trainer does.

        Raises:
            StorageError: The hub cannot be reached, or refuses; the student is saved.
        """
        with self._pushing():
            return super().push_to_hub(*args, **kwargs)

    def push_folder(self) -> None:
        """Upload what the finished run has written, once its card and its results are there.

        Raises:
            StorageError: The hub cannot be reached, or refuses; the student is saved.
        """
        if not self.is_world_process_zero():
            return
        self._finish_current_push()
        with self._pushing():
            HfApi(library_name="distill").upload_folder(
                repo_id=str(self.hub_model_id),
                folder_path=str(self.args.output_dir),
                commit_message="End of training",
                token=self.args.hub_token,
                ignore_patterns=list(_NOT_PUSHED),
                revision=self.args.hub_revision,
            )

    @contextmanager
    def _pushing(self) -> Iterator[None]:
        made: str | None = self.hub_model_id  # None without --push_to_hub, before it is made
        folder, repo = str(self.args.output_dir), made or "OWNER/NAME"
        later = f"{folder} has the finished student: run `distill push {folder} hf://{repo}`"
        with _explained(f"hf://{repo}", later):
            if self.is_world_process_zero() and made:
                token, api = self.args.hub_token, HfApi(library_name="distill")
                api.repo_info(repo, token=token, timeout=_ANSWERS_WITHIN_S)
            yield

    def _known(self) -> RunObject:
        """Collect what a card says, of a run that has not ended."""
        args, store = self.args, self.stores.each[0]
        model: Any = self.model
        name = str(getattr(model, "name_or_path", "")) or None
        return {
            "name": args.run_name or Path(str(args.output_dir)).absolute().name,
            "seed": args.seed,
            "steps": self.state.global_step,
            "loss": args.loss,
            "ce_weight": args.ce_weight,
            "uncovered": args.uncovered if self.weights else None,
            "model_name_or_path": name,
            "base_model": hub_id(name),
            "store": args.store,
            "store_digest": self.stores.digest,
            "teacher": teacher_of(store),
            "sequences": len(self.data),
            "metrics": self.last_report,
        }


def teacher_of(store: Store) -> dict[str, Any]:
    """Collect what the model card shows about the teacher and its store."""
    return {
        "name": store.provenance.get("teacher"),
        "revision": store.provenance.get("revision"),
        "fingerprint": store.spec.teacher.get("fingerprint"),
        "dataset": store.provenance.get("dataset"),
        "top_k": store.spec.top_k,
        "tail_mean": store.fidelity.tail_mean,
    }


@contextmanager
def _explained(where: str, later: str) -> Iterator[None]:
    """Say in a sentence what the hub's client raises, and what to do."""
    try:
        yield
    except Exception as error:
        if not _is_of_hub(error):
            raise
        answered = getattr(error, "response", None) is not None
        what = "the hub refuses" if answered else "the hub cannot be reached"
        raise StorageError(f"{where}: {what} ({in_a_line(error)}). {later}.") from error


def _is_of_hub(error: Exception) -> bool:
    """Tell an answer of the hub, or none, from whatever else fails while a student is pushed."""
    known = (HfHubHTTPError, LocalTokenNotFoundError, ConnectionError, TimeoutError)
    library = type(error).__module__.partition(".")[0]  # the client's own errors are no OSError
    return isinstance(error, known) or library in ("httpx", "httpx2", "requests")
