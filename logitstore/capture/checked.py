"""Check the settings of a capture, as far as they are wrong for every teacher and dataset."""

from collections.abc import Mapping, Sequence

from logitstore.capture.passes.server.options import Options as ServerOptions
from logitstore.capture.passes.vllm.library import check_installed
from logitstore.capture.passes.vllm.options import PUBLIC, WORKER
from logitstore.capture.passes.vllm.options import Options as VllmOptions
from logitstore.capture.sampling import Sampling
from logitstore.errors import InputError
from logitstore.errors import check_installed as check_library
from logitstore.format.hidden import DTYPES, EMBEDDING, LAST, LAYERS
from logitstore.format.spec import CODECS
from logitstore.text.turns import MODES, SUPERVISE

#: The value of `tokens_per_batch` that is replaced by what fits, before the first shard.
AUTO = "auto"
ON_NAN = ("stop", "skip")
TRANSFORMERS, VLLM, SERVER = "transformers", "vllm", "server"
ENGINES = (TRANSFORMERS, VLLM, SERVER)
#: The values of `dtype` besides AUTO.
NUMBER_FORMATS = ("float32", "bfloat16", "float16")
#: What becomes of rows that are longer than `max_length`.
OVERFLOWS = ("split", "truncate", "skip")
#: The values of `experts`.
EXPERTS = ("all", "N-1")
_MAX_TOP_K = 0xFFFF  # an entry count is a 16-bit number
_MAX_DRAWS = 4096  # random words of a batch stay below a gigabyte
_MAX_SEED = 0xFFFF_FFFF
_VLLM_TEMPERATURES = (0.01, 2.0)
#: What an engine has in place of a flag.
_INSTEAD = {
    (VLLM, "--quantization"): ", or give --engine-args quantization=fp8",
    (VLLM, "--device"): ", or set CUDA_VISIBLE_DEVICES",
    (VLLM, "--device-map"): ", or give --engine-args tensor_parallel_size=2",
    (VLLM, "--attn-implementation"): ", or give --engine-args attention_backend=NAME",
}


class Checked:
    """The checks of `CaptureSettings`, which describes the values named here."""

    top_k: int
    max_tail: float | None
    ids: bool
    temperatures: Sequence[float]
    draws: int
    seed: int | None
    generate: bool
    max_new_tokens: int | None
    generate_temperature: float | None
    generate_top_k: int | None
    top_p: float | None
    stop: Sequence[str]
    tokens_per_batch: int | str | None
    on_nan: str
    max_lost: float
    shard_text_bytes: int | None
    codec: str
    engine: str
    server: str | None
    engine_args: Sequence[str]
    logit_std: bool
    hidden: Sequence[str]
    hidden_dtype: str | None
    hidden_context: bool
    with_lm_head: bool
    boundaries_of: str | None
    quantization: object
    gguf_file: str | None
    device: str | None
    device_map: object
    attn_implementation: str | None
    experts: str | None
    expert_sample: float | None
    dtype: str
    overflow: str
    supervise: str | None
    supervised_text: str | None

    def check(self) -> None:
        """Reject values that are wrong for every teacher and dataset.

        Raises:
            InputError: Names the flag.
            MissingLibraryError: It needs a library that is not installed.
        """
        if not 0 <= self.top_k <= _MAX_TOP_K:
            raise InputError(f"--top-k is {self.top_k}, expected 0 to {_MAX_TOP_K}.")
        if self.max_tail is not None and not 0 < self.max_tail < 1:
            raise InputError(
                f"--max-tail is {self.max_tail}, expected a probability between 0 and 1, such as "
                "0.01."
            )
        self._check_temperatures()
        self._check_experts()
        self._check_draws()
        self._check_hidden()
        self._check_generation()
        self._check_tokens_per_batch()
        if self.on_nan not in ON_NAN:
            raise InputError(f"--on-nan is {self.on_nan}, expected {' or '.join(ON_NAN)}.")
        if self.shard_text_bytes is not None and self.shard_text_bytes < 1:
            raise InputError(f"--shard-text-bytes is {self.shard_text_bytes}, expected 1 or more.")
        if not 0 <= self.max_lost <= 1:
            raise InputError(f"--max-lost is {self.max_lost}, expected 0 to 1, such as 0.05.")
        self._check_codec()
        self._check_engine()
        self._check_gguf()
        self._check_words()

    def _check_words(self) -> None:
        """Reject words that are told again where they are used, there behind seconds of loading."""
        if self.dtype not in (AUTO, *NUMBER_FORMATS):
            known = ", ".join((AUTO, *NUMBER_FORMATS))
            raise InputError(f"--dtype is {self.dtype}, expected {known}.")
        if self.overflow not in OVERFLOWS:
            raise InputError(f"--overflow is {self.overflow}, expected {', '.join(OVERFLOWS)}.")
        if self.supervise not in (None, *SUPERVISE):
            raise InputError(f"--supervise is {self.supervise}, expected {' or '.join(SUPERVISE)}.")
        if self.supervised_text not in (None, *MODES):
            known = " or ".join(MODES)
            raise InputError(f"--supervised-text is {self.supervised_text}, expected {known}.")

    def _check_engine(self) -> None:
        if self.engine not in ENGINES:
            *others, last = ENGINES
            raise InputError(f"--engine is {self.engine}, expected {', '.join(others)} or {last}.")
        if self.engine != SERVER and self.server:
            raise InputError(
                f"--server is {self.server}, but --engine is {self.engine}, which has none. Leave "
                f"it out, or add --engine {SERVER}."
            )
        if self.engine == TRANSFORMERS:
            if self.engine_args:
                raise InputError(
                    f"--engine-args is {' '.join(self.engine_args)}, but --engine is "
                    f"{TRANSFORMERS}, which has none. Leave it out, or add --engine {VLLM} or "
                    f"--engine {SERVER}."
                )
        elif self.engine == SERVER:
            self._check_server()
        else:
            self._check_vllm()

    def _check_gguf(self) -> None:
        if self.gguf_file is None:
            return
        if self.quantization is not None:
            raise InputError(
                f"--gguf-file {self.gguf_file}: what such a file holds is quantised already, so "
                "--quantization would quantise it again. Leave it out."
            )
        check_library("gguf", f"--gguf-file {self.gguf_file}:", "gguf")

    def _check_server(self) -> None:
        """Reject what a server does not say: it gives entries and the token's own alone."""
        if not self.server:
            raise InputError(
                f"--engine {SERVER} needs the address of one. Give it with --server, such as "
                "http://localhost:8000."
            )
        ServerOptions.of(self.engine_args)
        if self.top_k < 1:
            raise InputError(
                f"--top-k is {self.top_k}, but a server gives entries alone. Ask for some."
            )
        self._check_left_out(
            {**self._needs_logits(), "--generate": self.generate, **self._of_transformers()}
        )

    def _check_vllm(self) -> None:
        """Reject what vLLM does not do, or not in the way that is asked for."""
        self._check_left_out(self._of_transformers())
        if self.vllm_options.way == PUBLIC:
            asked = self._needs_logits() | ({} if self.top_k else {"--top-k": "0"})
            for flag, value in asked.items():
                if _is_given(value):
                    raise InputError(
                        f"{flag} is {value}, and vLLM's public way gives entries alone. Leave it "
                        f"out, or give --engine-args way={WORKER}."
                    )
        least, most = _VLLM_TEMPERATURES
        if self.generate_temperature and not least <= self.generate_temperature <= most:
            raise InputError(
                f"--generate-temperature is {self.generate_temperature}, and vLLM samples at "
                f"{least} to {most:g}. Give one between, or 0: always the most probable token."
            )
        check_installed()

    def _check_left_out(self, asked: Mapping[str, object]) -> None:
        for flag, value in asked.items():
            if _is_given(value):
                raise InputError(
                    f"{flag} is {value}, which needs the teacher in this process, and --engine is "
                    f"{self.engine}. Leave it out{_INSTEAD.get((self.engine, flag), '')}, or use "
                    f"--engine {TRANSFORMERS}."
                )

    @property
    def vllm_options(self) -> VllmOptions:
        """Return what `engine_args` say to vLLM.

        Raises:
            InputError: One is not an option.
        """
        return VllmOptions.of(self.engine_args)

    @property
    def says_lists(self) -> bool:
        """Tell whether the engine says entries alone, from which entropy is not known."""
        if self.engine != VLLM:
            return self.engine == SERVER
        asks_more = any(map(_is_given, self._needs_logits().values())) or not self.top_k
        return (self.vllm_options.way or (WORKER if asks_more else PUBLIC)) == PUBLIC

    def _needs_logits(self) -> dict[str, object]:
        """Return what only whole distributions give."""
        return {
            "--temperature": self.temperatures,
            "--logit-std": self.logit_std,
            "--draws": self.draws,
        }

    def _of_transformers(self) -> dict[str, object]:
        """Return what only the model in this process can do, or knows."""
        return {
            "--boundaries-of": self.boundaries_of,
            "--quantization": self.quantization,
            "--gguf-file": self.gguf_file,
            "--device": self.device,
            "--device-map": self.device_map,
            "--attn-implementation": self.attn_implementation,
            "--experts": self.experts,
            "--hidden": ",".join(self.hidden_layers) or None,
        }

    @property
    def hidden_layers(self) -> tuple[str, ...]:
        """Return the layers whose hidden states are kept; `a,b` counts as two."""
        return tuple(word.strip() for each in self.hidden for word in each.split(","))

    def _check_hidden(self) -> None:
        layers = self.hidden_layers
        if not layers:
            for flag, value in (
                ("--hidden-dtype", self.hidden_dtype),
                ("--hidden-context", self.hidden_context),
                ("--with-lm-head", self.with_lm_head),
            ):
                if value:
                    raise InputError(
                        f"{flag} is given, but no hidden states are kept. Leave it out, or add "
                        f"--hidden {LAST}."
                    )
            return
        if LAST not in layers or set(layers) - set(LAYERS) or len(set(layers)) < len(layers):
            raise InputError(
                f"--hidden is {','.join(layers)}, expected {LAST} or {LAST},{EMBEDDING}."
            )
        if self.hidden_dtype is not None and self.hidden_dtype not in DTYPES:
            raise InputError(
                f"--hidden-dtype is {self.hidden_dtype}, expected {' or '.join(DTYPES)}."
            )
        if self.boundaries_of is not None:
            raise InputError(
                "--hidden with --boundaries-of: a hidden state is kept of the teacher's own tokens "
                "alone, not at the boundaries of a student's. Leave one of the two out."
            )

    def _check_codec(self) -> None:
        if self.codec not in CODECS:
            raise InputError(f"--codec is {self.codec}, expected {' or '.join(CODECS)}.")
        if self.codec == "compact":
            from logitstore.format.chunk_codecs import pcodec_library

            pcodec_library()

    def _check_tokens_per_batch(self) -> None:
        tokens = self.tokens_per_batch
        if isinstance(tokens, str) and tokens != AUTO:
            raise InputError(f"--tokens-per-batch is {tokens}, expected a number or {AUTO}.")
        if isinstance(tokens, int) and tokens < 1:
            raise InputError(f"--tokens-per-batch is {tokens}, expected 1 or more.")

    def _check_experts(self) -> None:
        if self.experts is not None and self.experts not in EXPERTS:
            raise InputError(f"--experts is {self.experts}, expected {' or '.join(EXPERTS)}.")
        share = self.expert_sample
        if share is None:
            return
        if self.experts != EXPERTS[1]:
            raise InputError(
                f"--expert-sample is {share:g}, but no experts are left out that could be drawn "
                f"instead. Add --experts {EXPERTS[1]}, or leave it out."
            )
        if not 0 < share <= 1:
            raise InputError(f"--expert-sample is {share:g}, expected a share above 0, as 0.05.")
        for flag, is_given in (
            ("--generate", self.generate),
            ("--boundaries-of", self.boundaries_of is not None),
        ):
            if is_given:
                raise InputError(
                    f"--expert-sample with {flag}: what a token draws depends on its place in the "
                    "text, which text that is not in the dataset has not. Leave one of the two out."
                )

    def _check_draws(self) -> None:
        if not 0 <= self.draws <= _MAX_DRAWS:
            raise InputError(f"--draws is {self.draws}, expected 0 to {_MAX_DRAWS}.")
        if self.top_k == 0 and not self.draws:
            raise InputError(
                "--top-k is 0, so no entries would be kept, and no draws are asked for. Add "
                "--draws 50 to draw from the whole distribution, or keep entries with --top-k 64."
            )
        if self.top_k == 0 and self.max_tail is not None:
            raise InputError(
                f"--max-tail is {self.max_tail}, but with --top-k 0 no entries are kept. Leave one "
                "of the two out."
            )
        if self.draws and not self.ids:
            raise InputError(
                f"--draws is {self.draws}, but draws are token ids, and --no-ids keeps none. Leave "
                "one of the two out."
            )
        if self.seed is not None and not 0 <= self.seed <= _MAX_SEED:
            raise InputError(f"--seed is {self.seed}, expected 0 to {_MAX_SEED}.")
        if self.seed is not None and not self.is_random:
            raise InputError(
                f"--seed is {self.seed}, but nothing is drawn at random. Leave it out, or ask for "
                "--draws, --expert-sample, or --generate with --generate-temperature."
            )

    @property
    def is_random(self) -> bool:
        """Tell whether the records depend on the seed."""
        is_sampled = self.generate and bool(self.generate_temperature)
        return self.draws > 0 or is_sampled or bool(self.expert_sample)

    @property
    def sampling(self) -> Sampling | None:
        """Return how completions are written; None if the dataset has them.

        Raises:
            InputError: Names the flag with an impossible value.
        """
        if not self.generate:
            return None
        return Sampling.of_flags(
            max_new_tokens=self.max_new_tokens,
            temperature=self.generate_temperature,
            top_k=self.generate_top_k,
            top_p=self.top_p,
            stop=self.stop,
            seed=self.seed,
        )

    def _check_generation(self) -> None:
        if self.generate:
            _ = self.sampling
            for name in ("supervise", "supervised_text"):
                if getattr(self, name) is not None:
                    raise InputError(
                        f"--{name.replace('_', '-')} is {getattr(self, name)}, but with --generate "
                        "the completion that is written is supervised. Leave one of the two out."
                    )
            return
        for name in ("max_new_tokens", "generate_temperature", "generate_top_k", "top_p", "stop"):
            value = getattr(self, name)
            if value not in (None, (), []):
                shown = ", ".join(value) if name == "stop" else value
                raise InputError(
                    f"--{name.replace('_', '-')} is {shown}, but nothing is written without "
                    "--generate. Leave it out, or add --generate."
                )

    def _check_temperatures(self) -> None:
        for t in self.temperatures:
            if not (0 < t < float("inf")) or t == 1:
                raise InputError(
                    f"--temperature is {t}, expected a positive number other than 1 (1 is always "
                    "kept)."
                )
        if len(set(self.temperatures)) != len(self.temperatures):
            raise InputError(
                f"--temperature is given twice for one of {list(self.temperatures)}. "
                "Give each once."
            )


def _is_given(value: object) -> bool:
    return value not in (None, False, 0, (), [])
