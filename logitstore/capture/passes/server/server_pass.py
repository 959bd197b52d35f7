"""Ask a server about batches of sequences: the engine whose teacher is elsewhere."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from logitstore.capture.passes.listed import ListedEngine, Refused, Said
from logitstore.capture.passes.server.apis import find_api
from logitstore.capture.passes.server.client import Client
from logitstore.capture.passes.server.options import Options
from logitstore.capture.sequences.windows import TeacherSequence
from logitstore.capture.teacher.teacher import Teacher
from logitstore.console.counts import counted
from logitstore.errors import InputError, MismatchError
from logitstore.format.spec import StoreSpec
from logitstore.records import Segment

log = logging.getLogger(__name__)

#: Text that tokenizers cut in different ways.
_PROBE = "The 1st probe:  two spaces, an été, 学生, and\n\tcode(x) == 3.14159!"


class ServerPass(ListedEngine):
    """Asks a server about batches of sequences.

    Args:
        teacher: The teacher, of which tokenizer and configuration are here.
        spec: What the store keeps.
        url: Address of the server.
        options: How to ask it.
        on_nan: `stop` at log-probabilities that are not finite, or `skip` the sequence.

    Attributes:
        place: Its address, for messages.
        versions: What it is.

    Raises:
        InputError: It cannot be reached, or gives fewer entries than are to be kept.
        MismatchError: It has another model, or another tokenizer.
    """

    step = "Start the server with --max-logprobs {k}, or capture"

    def __init__(
        self,
        teacher: Teacher,
        spec: StoreSpec,
        url: str,
        options: Options,
        on_nan: str = "stop",
    ) -> None:
        super().__init__(spec, on_nan)
        client = Client(url, options)
        self.place = client.place
        self._api = find_api(client, options, teacher.name)
        self.versions = {self._api.name: self._api.version}
        self._requests = ThreadPoolExecutor(options.concurrency, thread_name_prefix="server")
        self._check_tokenizer(teacher)
        self._check_entries(teacher)

    def close(self) -> None:
        """End the threads that ask."""
        self._requests.shutdown(wait=False, cancel_futures=True)

    def ask(self, batch: Sequence[TeacherSequence]) -> list[Said | Refused]:
        """Ask about every sequence of a batch at once.

        Raises:
            InputError: The server cannot be reached, or answers something else.
        """
        return list(self._requests.map(self._ask, batch))

    def _ask(self, sequence: TeacherSequence) -> Said | Refused:
        try:
            return self._api.score(sequence.text.token_ids.tolist(), self.spec.top_k)
        except Refused as e:
            return e

    def _check_tokenizer(self, teacher: Teacher) -> None:
        """Compare the server's tokens of a text with ours, if it tells."""
        own = teacher.tokenizer.encode(
            [Segment(_PROBE, True)], add_eos=False, add_prefix=False
        ).token_ids.tolist()
        theirs = self._api.tokenise(_PROBE)
        if theirs is None:
            log.warning(
                "%s: the server does not say how it tokenises, so its tokenizer cannot be compared "
                "with that of %s.",
                self.place,
                teacher.name,
            )
        elif theirs != own:
            raise MismatchError(
                f"{self.place}: the server cuts a text into {counted(len(theirs), 'token')}, "
                f"{teacher.name} "
                f"into {len(own):,} others: they have two tokenizers, and ids of the one mean "
                "nothing to the other. Start a server of the teacher, or name its folder."
            )

    def _check_entries(self, teacher: Teacher) -> None:
        """Ask about a few tokens, so that a server that gives too little is found out at once."""
        ids = teacher.tokenizer.encode([Segment("a b", True)], add_eos=False).token_ids.tolist()
        try:
            said = self._api.score((ids * 2)[:4], self.spec.top_k)
        except Refused as e:
            raise InputError(
                f"{self.place}: the server refuses a request for {self.spec.top_k} entries: {e}. "
                f"Start it with --max-logprobs {self.spec.top_k}, or use a smaller --top-k.",
                kind="engine",
            ) from None
        self.check_probe(said)
