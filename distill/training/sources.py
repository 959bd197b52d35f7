"""Open what a run learns from: the store, its records at a student's boundaries, its rows."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.data.dataset import StoreDataset
from distill.data.example import Store
from distill.losses import find
from distill.training.config import CachedTeacherConfig
from distill.training.preflight import check_no_template
from logitstore import open_store
from logitstore.errors import InputError, MismatchError
from logitstore.models.context_length import context_length
from logitstore.text.chat_template import ChatTemplate, parse_kwargs
from logitstore.text.tokenizer import ByteTokenizer


def store_of_run(store: Store | None, path: str | None, args: CachedTeacherConfig) -> Store:
    """Return a store that is open already, or open the one that the run names."""
    if store is not None:
        return store
    assert path is not None
    return open_store(path, allow_partial=args.allow_partial)


def at_boundaries(store: Store, student: ByteTokenizer, args: CachedTeacherConfig) -> Store:
    """Choose the records to learn from: at the teacher's own tokens, or at the student's.

    Raises:
        MismatchError: The store has none at the boundaries of this student.
        InputError: A loss chooses its labels by the tokens of the teacher's text.
    """
    if not args.boundaries:
        return store
    for name in args.loss_weights:
        if find(name).pairing_of(args.loss_options).kind == "strict":
            raise InputError(
                f"--boundaries: a strict {name} is for labels that are the teacher's tokens, and "
                "at the boundaries of a student the teacher's tokens are not known. Leave "
                "--map strict out, or --boundaries."
            )
    return store.boundaries_of(student.fingerprint, student.name)


def _check_template(store: Store, template: ChatTemplate) -> None:
    """Reject another chat template than the one whose boundaries a store has records at.

    Raises:
        MismatchError: It is another.
    """
    known = (store.spec.boundaries_of or {}).get("chat_template_sha256", template.digest)
    if known != template.digest:
        raise MismatchError(
            f"{store.path}: has records at the boundaries of this student with chat template "
            f"{known[:12]}…, but this run's is {template.digest[:12]}…. Give that template with "
            "--chat_template_path, or train without --boundaries."
        )


def dataset_of_run(
    store: Store,
    student: ByteTokenizer,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    args: CachedTeacherConfig,
) -> StoreDataset:
    """Make the rows of a store for a student, in its chat template and as long as it reads.

    Raises:
        LogitStoreError: Store, student and settings do not fit together.
    """
    template = None
    if store.spec.rendering["kind"] == "conversation":
        kwargs = parse_kwargs(args.chat_template_kwargs, "--chat_template_kwargs")
        template = ChatTemplate.of(
            tokenizer,
            student,
            path=args.chat_template_path,
            kwargs=kwargs,
            flag="--chat_template_path",
        )
        _check_template(store, template)
    else:
        check_no_template(args, store.path)
    readable = context_length(model.config)
    return StoreDataset(
        store,
        student,
        tuple(args.loss_weights),
        max_length=min([n for n in (args.max_length, readable) if n], default=None),
        template=template,
        **args.loss_options,
    )
