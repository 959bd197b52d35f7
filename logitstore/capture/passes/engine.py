"""What turns a batch of token sequences into arrays: the one place where the teacher is asked.

Everything else of a capture (rows, windows, shards, claims, resume, halving, estimate, self-test)
is the same for every engine:

    transformers    `TeacherPass` (teacher_pass.py): the model's own forward, in this process
    vllm            `PublicPass`, `WorkerPass` (vllm/): vLLM, in processes of this one's
    server          `ServerPass` (server/): asks a server about the tokens of a prompt (listed.py)

The same bytes again are promised of `transformers` alone. What another engine says of a row may
depend on what it reads beside it; the self-test measures how much, and the store has the figure.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

from torch import Tensor

from logitstore.capture.passes.completer import Completer
from logitstore.capture.sampling import Sampling
from logitstore.capture.sequences.prompts import PromptReader
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.teacher.hidden import CaughtStates
from logitstore.capture.teacher.summary import HeadResult
from logitstore.format.encoded import EncodedRecords
from logitstore.format.lm_head import LmHead
from logitstore.format.spec import StoreSpec

#: The statuses of sequences without records: logits that were not finite; a refusal of the engine.
NOT_FINITE, REFUSED = "not_finite", "refused"


class SequenceRecords(NamedTuple):
    """Holds the records of one sequence; None for a sequence that was skipped.

    Attributes:
        own: At the teacher's own tokens.
        boundaries: At the boundaries of a student's tokens; None also where none is asked about.
        status: Of a sequence that was skipped: why, in a word.
        why: The same in the engine's words, if it has any.
    """

    own: EncodedRecords | None
    boundaries: EncodedRecords | None = None
    status: str = NOT_FINITE
    why: str = ""


class Forwarded(NamedTuple):
    """Holds what the teacher said of a batch.

    Attributes:
        result: (n,) summaries of the prediction of every supervised token.
        sequence_n: The sequence of each, by its place in the batch.
        answers: Summaries behind every branch, in the order of `branches.placed`; None: no branch.
        refused: Why the engine reads a sequence not at all, by its place in the batch: of such a
            sequence `result` has nothing.
        states: The hidden states that are kept; None: none are.
    """

    result: HeadResult
    sequence_n: Tensor
    answers: HeadResult | None = None
    refused: Mapping[int, str] = MappingProxyType({})
    states: CaughtStates | None = None


class Alone(NamedTuple):
    """Holds what the teacher says of a sequence of T tokens that it reads by itself.

    Attributes:
        own: (T - 1,) log-probability of each token but the first.
        logprobs: (T - 1, V) the whole distributions; None from an engine that says only a part.
    """

    own: Tensor
    logprobs: Tensor | None = None


class Engine(Protocol):
    """Turns batches of token sequences into arrays.

    Attributes:
        spec: What the store keeps.
        place: Where it runs, for messages.
        devices: How many devices hold the teacher.
        versions: Of programs that only this engine uses, for the store's provenance.
        is_quantized: Whether its weights are, however they came to be.
        raises_out_of_memory: Whether it raises an error where a batch is too large.
    """

    spec: StoreSpec
    place: str
    devices: int
    versions: Mapping[str, str]
    is_quantized: bool
    raises_out_of_memory: bool

    def forward(self, batch: Sequence[TeacherSequence]) -> Forwarded:
        """Summarise the prediction of every supervised token, and what is said behind branches."""

    def encode(
        self,
        batch: Sequence[TeacherSequence],
        result: HeadResult,
        sequence_n: Tensor,
        answers: HeadResult | None = None,
        refused: Mapping[int, str] = ...,
        states: CaughtStates | None = None,
    ) -> list[SequenceRecords]:
        """Encode the records of a forwarded batch; may run on another thread."""

    def most_probable(self, batch: Sequence[TeacherSequence], count: int) -> HeadResult:
        """Find the `count` most probable tokens (or all there are), whatever the spec keeps."""

    def alone(self, sequence: TeacherSequence) -> Alone:
        """Ask about a sequence by itself, the plainest way."""

    def lm_head(self) -> LmHead:
        """Take the teacher's output embedding; never asked for where the spec has none."""

    def completer(
        self,
        reader: PromptReader,
        sampling: Sampling,
        budget: int,
        beat: Callable[[], None],
    ) -> Completer:
        """Make what writes completions; never asked for where the settings allow none."""

    def close(self) -> None:
        """Let go of what it holds besides memory: processes, threads."""
