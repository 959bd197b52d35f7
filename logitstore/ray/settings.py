"""How a capture runs on a Ray cluster: none of it is in the store."""

from dataclasses import dataclass

from logitstore.capture.checked import SERVER, TRANSFORMERS
from logitstore.capture.settings import CaptureSettings
from logitstore.console.launcher import Ranks
from logitstore.console.settings import described, flag_of, setting
from logitstore.errors import InputError

#: Heading of the options in `logitstore capture --help`.
PANEL = "Running on a Ray cluster"
#: Addresses that are none: the cluster that this machine belongs to; one that is started here.
AUTO, LOCAL = "auto", "local"


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """Which cluster, and what each teacher on it holds."""

    address: str | None = setting(
        None,
        PANEL,
        "Hand the missing shards to teachers on a Ray cluster: the address of one (HOST:PORT or "
        "ray://HOST:PORT), auto (the one that this machine belongs to, or RAY_ADDRESS names), or "
        "local, which is started here and stopped at the end. All nodes have to see STORE.",
        flag="--ray",
        metavar="ADDRESS",
    )
    teachers: int | None = setting(
        None,
        PANEL,
        "Teachers at once, with `address`. A cluster that grows when it is asked to is then waited "
        "for.",
        metavar="N",
        unset="as many as there is room for, also on nodes that join",
        is_rare=True,
    )
    gpus_per_teacher: float | None = setting(
        None,
        PANEL,
        "GPUs that each teacher holds.",
        metavar="N",
        unset="1 where the cluster has any",
        is_rare=True,
    )
    cpus_per_teacher: int | None = setting(
        None,
        PANEL,
        "Processors that each teacher holds.",
        metavar="N",
        unset="1 beside GPUs, else as many as torch uses here",
        is_rare=True,
    )
    max_restarts: int = setting(
        3,
        PANEL,
        "How often a shard is begun again whose teacher, or its node, died. So many teachers may "
        "also die in a row before they have loaded the model.",
        metavar="N",
        is_rare=True,
    )

    def check(self, settings: CaptureSettings, ranks: Ranks) -> None:
        """Reject what does not go together; of no cluster: whatever was given besides.

        Raises:
            InputError: Names the flag.
        """
        if self.address is None:
            self._check_nothing_given()
            return
        given = f"--ray {self.address}"
        if settings.claim:
            raise InputError(
                f"{given} and --claim: on Ray a driver says who does which shard, so there is "
                "nothing to claim. Leave one of the two out."
            )
        if ranks.size > 1:
            raise InputError(
                f"{given}: was started by a launcher ({ranks}), but one process drives all teachers"
                " of a Ray cluster. Start it by itself, without torchrun, accelerate or srun."
            )
        for flag, value, least in (
            ("--teachers", self.teachers, 1),
            ("--gpus-per-teacher", self.gpus_per_teacher, 0),
            ("--cpus-per-teacher", self.cpus_per_teacher, 1),
            ("--max-restarts", self.max_restarts, 0),
        ):
            if value is not None and not least <= value < float("inf"):
                raise InputError(f"{flag} is {value}, expected {least} or more.")
        self._check_devices(settings)

    def _check_nothing_given(self) -> None:
        for each in described(RaySettings):
            value = getattr(self, each.name)
            if value != each.default:
                raise InputError(
                    f"{flag_of(each)} is {value}, but no Ray cluster is asked for. Leave it out, "
                    "or add --ray auto."
                )

    def _check_devices(self, settings: CaptureSettings) -> None:
        gpus = self.gpus_per_teacher or 0
        if gpus > 1 and gpus != int(gpus):
            raise InputError(
                f"--gpus-per-teacher is {gpus:g}, expected a whole number, or less than one."
            )
        if settings.device not in (None, "cpu"):
            raise InputError(
                f"--device {settings.device} and --ray {self.address}: Ray says which devices a "
                "teacher has. Leave --device out, or use --device cpu."
            )
        if gpus and (settings.device == "cpu" or settings.engine == SERVER):
            why = "--device is cpu" if settings.device == "cpu" else f"--engine is {SERVER}"
            raise InputError(
                f"--gpus-per-teacher is {gpus:g}, but {why}, which needs none. Leave one of the "
                "two out."
            )
        if gpus > 1 and settings.engine == TRANSFORMERS and settings.device_map is None:
            raise InputError(
                f"--gpus-per-teacher is {gpus:g}, but a teacher of {TRANSFORMERS} is on one device "
                "unless it is spread. Add --device-map auto, or leave it at 1."
            )
