"""A run as flags, as YAML, as Python: the same checks on every way in, and no setting that lies."""

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from distill.losses import find
from distill.losses.weights import parse_losses
from distill.student.arguments import StudentArguments
from distill.training.command_line import parse
from distill.training.config import CachedTeacherConfig
from distill.training.presets import PRESETS
from distill.training.unusable_flags import REJECTED
from logitstore.errors import InputError

NEEDED = ("--store", "s", "--output_dir", "o", "--model_name_or_path", "m", "--use_cpu")

#: Flags of TrainingArguments that work here as they do in Trainer, decided one by one.
WORKING = set(
    """
accelerator_config activation_checkpointing activation_checkpointing_kwargs adam_beta1 adam_beta2
adam_epsilon auto_find_batch_size bf16 bf16_full_eval data_seed dataloader_drop_last
dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers
dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor ddp_backend
ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout
deepspeed disable_tqdm do_eval do_train enable_jit_checkpoint eval_delay eval_on_start
eval_steps eval_strategy fp16 fp16_full_eval fsdp fsdp_config full_determinism
gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs greater_is_better
hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy hub_token ignore_data_skip
include_num_input_tokens_seen learning_rate load_best_model_at_end local_rank log_level
log_level_replica log_on_each_node logging_first_step logging_nan_inf_filter logging_steps
logging_strategy lr_scheduler_kwargs lr_scheduler_type max_grad_norm max_steps
metric_for_best_model neftune_noise_alpha num_train_epochs optim optim_args optim_target_modules
output_dir parallelism_config per_device_eval_batch_size per_device_train_batch_size project
push_to_hub report_to restore_callback_states_from_checkpoint resume_from_checkpoint run_name
save_on_each_node save_only_model save_steps save_strategy save_total_limit seed
skip_memory_metrics tf32 torch_empty_cache_steps trackio_bucket_id trackio_space_id
trackio_static_space_id train_sampling_strategy use_cache use_cpu warmup_steps weight_decay
""".split()  # noqa: SIM905
)


def config(**settings: Any) -> CachedTeacherConfig:
    return CachedTeacherConfig(**{"output_dir": "o", "store": "s", "use_cpu": True} | settings)


def test_flags_are_the_ones_trainer_users_know() -> None:
    run, student = parse(
        [*NEEDED, "--learning_rate", "1e-4", "--loss", "uld:2", "--report_to", "none"]
    )
    assert (run.store, run.learning_rate, run.loss_weights) == ("s", 1e-4, {"uld": 2.0})
    assert (student.model_name_or_path, student.dtype) == ("m", "float32")


def test_hyphens_are_as_good_as_underscores() -> None:
    run, student = parse(
        ["--store=s", "--output-dir=o", "--model-name-or-path=m", "--use-cpu", "--ce-weight", "0.5"]
    )
    assert (run.output_dir, run.ce_weight, student.model_name_or_path) == ("o", 0.5, "m")


def test_the_file_says_what_flags_say_and_flags_win(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "store: s\noutput-dir: o\nmodel_name_or_path: m\nuse_cpu: true\nlearning_rate: 1e-4\n"
        "max_steps: -1\nseed: 3\nrun_name: null\nreport_to: [none]\nmap: strict\n"
        "lr_scheduler_kwargs: {num_cycles: 2}\n"
    )
    run, _ = parse(["--seed", "4", "--config", str(path)])
    assert (run.seed, run.learning_rate, run.max_steps, run.map) == (4, 1e-4, -1, "strict")
    assert run.lr_scheduler_kwargs == {"num_cycles": 2}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("learning_rte: 1", "no key is called learning_rte. Did you mean learning_rate?"),
        ("config: x", "no key is called config"),
        ("- a\n- b", "expected `key: value` lines, found list"),
        ("", "found nothing"),
        ("a: [", "cannot be read as YAML"),
        ("seed: many", "argument --seed: invalid int value: 'many'"),
        ("pairing: chance", "argument --pairing: invalid choice: 'chance'"),
    ],
)
def test_a_bad_file_says_where_and_what(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        parse([*NEEDED, "--config", str(path)])
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--learning_rte", "1"), "no flag is called --learning_rte. Did you mean learning_rate?"),
        (("--learning", "1"), "no flag is called --learning"),  # no abbreviations
        (("stray",), "'stray' is neither a flag nor the value of one"),
        (("--seed", "x"), "invalid int value"),
        (("--config", "/nowhere.yaml"), "cannot be read"),
        (("--ce_weight", "-1"), "--ce_weight is -1.0, expected a number >= 0"),
        (("--ce_weight", "nan"), "--ce_weight is nan"),
        (("--loss", "ce", "--ce_weight", "0"), "leaves nothing to train on"),
        (("--max_length", "1"), "--max_length is 1, expected at least 2"),
        (("--eval_strategy", "sometimes"), "sometimes"),
    ],
)
def test_bad_flags_say_what_to_do(flags: tuple[str, ...], says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse([*flags, *NEEDED])
    assert says in str(caught.value)


@pytest.mark.parametrize("missing", ["--store", "--output_dir", "--model_name_or_path"])
def test_what_is_required_is_asked_for(missing: str) -> None:
    given = list(NEEDED)
    del given[given.index(missing) : given.index(missing) + 2]
    with pytest.raises(InputError, match=f"{missing} is required"):
        parse(given)


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("ce", {}),
        ("uld", {"uld": find("uld").weight}),
        ("uld:0.5, mapped_kl:2", {"uld": 0.5, "mapped_kl": 2.0}),
    ],
)
def test_losses_are_names_with_weights(text: str, weights: dict[str, float]) -> None:
    assert parse_losses(text) == weights


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kl", "no loss is called 'kl'. Known: ce, mapped_kl, tail_kl"),
        ("", "no loss is called ''"),
        ("uld,ce", "Cross-entropy is added to the others by --ce_weight"),
        ("uld,uld:2", "uld is named twice"),
        ("uld:", "the weight '' is not a number above 0"),
        ("uld:0", "the weight '0' is not"),
        ("uld:inf", "the weight 'inf' is not"),
    ],
)
def test_a_bad_loss_is_named(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        config(loss=text)


def test_every_flag_of_trainer_has_been_decided() -> None:
    """A new version's new flag fails here until somebody has looked whether it works."""
    known = {each.name for each in dataclasses.fields(TrainingArguments)}
    assert known - WORKING - set(REJECTED) == set()
    assert not WORKING & set(REJECTED)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("average_tokens_across_devices", False),
        ("batch_eval_metrics", True),
        ("debug", "underflow_overflow"),
        ("do_predict", True),
        ("eval_accumulation_steps", 2),
        ("eval_do_concat_batches", False),
        ("eval_use_gather_object", True),
        ("include_for_metrics", ["inputs"]),
        ("label_names", ["labels"]),
        ("label_smoothing_factor", 0.1),
        ("length_column_name", "n"),
        ("liger_kernel_config", {"rope": True}),
        ("prediction_loss_only", True),
        ("remove_unused_columns", True),
        ("torch_compile", True),
        ("torch_compile_backend", "inductor"),
        ("torch_compile_mode", "default"),
        ("use_liger_kernel", True),
        ("train_sampling_strategy", "batch_rebalance"),
    ],
)
def test_a_flag_that_would_silently_not_work_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"--{name} .* would have no effect: "):
        config(**{name: value})


@pytest.mark.parametrize(("option", "value"), [("dispatch_batches", True), ("even_batches", False)])
def test_an_accelerate_option_that_would_cut_or_hang_is_refused(option: str, value: bool) -> None:
    with pytest.raises(InputError, match=f"--accelerator_config {option}"):
        config(accelerator_config={option: value})


def test_a_config_survives_being_copied() -> None:
    first = config(eval_strategy="steps", gradient_accumulation_steps=4, loss="uld:2")
    again = dataclasses.replace(first)
    assert again.gradient_accumulation_steps == 4
    assert again.loss_weights == first.loss_weights


@pytest.mark.parametrize(("one_tokenizer", "loss"), [(True, "tail_kl"), (False, "mapped_kl")])
def test_a_loss_that_is_not_given_follows_the_tokenizers(one_tokenizer: bool, loss: str) -> None:
    """The configuration itself stays as it is, and can serve another pair."""
    for given in (config(), config(loss="auto"), parse(NEEDED)[0]):
        assert given.settled(one_tokenizer=one_tokenizer).loss_weights == {loss: 1.0}
        assert given.loss == "auto"
    given = config(loss="uld:2")
    assert given.settled(one_tokenizer=one_tokenizer) is given


def test_an_option_that_the_settled_loss_does_not_read_is_refused() -> None:
    assert config(map="counted").settled(one_tokenizer=False).map == "counted"
    with pytest.raises(InputError, match="--map counted would have no effect: --loss tail_kl is "):
        config(map="counted").settled(one_tokenizer=True)
    with pytest.raises(InputError, match=r"--temperature 2\.0 would have no effect: --loss mapped"):
        config(temperature=2.0).settled(one_tokenizer=False)


@pytest.mark.parametrize("name", PRESETS)
def test_every_setting_of_a_preset_is_a_flag_and_has_a_source(name: str) -> None:
    run, _ = parse(["--preset", name, *NEEDED])
    for setting in PRESETS[name]:
        assert setting.source
        value = getattr(run, setting.flag)
        if isinstance(value, dict):
            assert value == json.loads(setting.value)
        elif isinstance(value, str):
            assert value == setting.value
        else:
            assert value == float(setting.value)


def test_what_is_said_wins_over_a_preset_and_flags_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("preset: uld_paper\nlearning_rate: 2e-6\nnum_train_epochs: 2\n")
    run, _ = parse([*NEEDED, "--config", str(path), "--num-train-epochs", "3"])
    assert (run.loss, run.learning_rate, run.num_train_epochs) == ("uld:1.5", 2e-6, 3)
    run, _ = parse([*NEEDED, "--config", str(path), "--preset", "recommended"])
    assert (run.loss, run.learning_rate) == ("auto", 2e-6)


def test_another_schedule_takes_the_place_of_the_presets() -> None:
    run, _ = parse(["--preset", "uld_paper", *NEEDED, "--lr-scheduler-type", "cosine"])
    assert (run.one_cycle, run.lr_scheduler_type) == (None, "cosine")
    run, _ = parse(["--preset", "recommended", *NEEDED, "--one_cycle", "{}"])
    assert (run.one_cycle, run.lr_scheduler_type, run.warmup_steps) == ({}, "linear", 0)
    with pytest.raises(InputError, match="--lr_scheduler_type cosine would have no effect beside"):
        config(one_cycle={}, lr_scheduler_type="cosine")


def test_a_presets_flag_goes_with_the_loss_that_reads_it() -> None:
    assert parse(["--preset", "uld_paper", *NEEDED, "--loss", "ce"])[0].pairing == "bytes"
    assert parse(["--preset", "uld_paper", *NEEDED, "--loss=alm,uld"])[0].pairing == "position"
    assert parse(["--preset", "uld_paper", *NEEDED, "--loss", "auto"])[0].pairing == "bytes"


@pytest.mark.parametrize(
    ("loss", "flag", "value", "reader"),
    [
        ("alm", "pairing", "position", "uld"),
        ("uld", "map", "strict", "mapped_kl"),
        ("uld", "tail_kl_kind", "jsd", "tail_kl"),
        ("mapped_kl", "temperature", 2.0, "tail_kl"),
        ("tail_kl", "alm_temperature", 1.0, "alm"),
    ],
)
def test_a_flag_that_no_chosen_loss_reads_is_refused(
    loss: str, flag: str, value: object, reader: str
) -> None:
    says = f"--{flag} {value} would have no effect: --loss {loss} is without {reader}. "
    with pytest.raises(InputError, match=says):
        config(loss=loss, **{flag: value})
    config(loss=f"{loss},{reader}", **{flag: value})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object of pct_start"),
        ('{"max_lr": 1}', "expected a JSON object of pct_start"),
        ('{"pct_start": 1}', "pct_start is 1, expected a number between 0 and 1"),
        ('{"div_factor": "2"}', "div_factor is 2, expected a number above 0"),
    ],
)
def test_a_bad_schedule_is_named(given: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        config(one_cycle=given)


def test_a_preset_that_is_not_known_is_named() -> None:
    with pytest.raises(InputError, match="--preset uld: not known"):
        parse(["--preset", "uld", *NEEDED])


def test_the_student_is_required() -> None:
    with pytest.raises(InputError, match="--model_name_or_path is required"):
        StudentArguments()


def test_a_flag_may_be_spelt_in_a_mixed_way_and_its_value_stays() -> None:
    words = "--store my-store --output_dir=an-out_put --model-name_or-path a-b --use-cpu"
    run, student = parse([*words.split(), "--lr-scheduler-kwargs={}", "--no_log-on-each-node"])
    assert (run.store, run.output_dir) == ("my-store", "an-out_put")
    assert student.model_name_or_path == "a-b"
    assert run.log_on_each_node is False


def test_a_flag_that_cannot_be_understood_is_of_the_kind_usage() -> None:
    for words in (["--lerning_rate", "1"], ["--max_steps", "many"]):
        with pytest.raises(InputError) as caught:
            parse([*NEEDED, *words])
        assert caught.value.kind == "usage"
    with pytest.raises(InputError) as caught:
        parse([*NEEDED, "--ce_weight", "-1"])
    assert caught.value.kind == "input"


def test_a_choice_that_yaml_takes_for_a_truth_value_is_the_choice(tmp_path: Path) -> None:
    """`save_strategy: no` was "invalid choice: 'false'"."""
    path = tmp_path / "run.yaml"
    path.write_text(
        "save_strategy: no\nlogging_strategy: No\nbf16: no\n"
        "store: s\noutput_dir: o\nmodel_name_or_path: m\nloss: ce\n"
    )
    made, _ = parse(["--config", str(path)])
    assert (made.save_strategy, made.logging_strategy, made.bf16) == ("no", "no", False)


def test_no_secret_is_in_what_is_pickled() -> None:
    """Trainer saves its settings as training_args.bin, in the folder that people share."""
    made = config(hub_token="hf_secret")
    assert b"hf_secret" not in pickle.dumps(made)
    assert pickle.loads(pickle.dumps(made)).learning_rate == made.learning_rate
    for copied in (copy.copy(made), copy.deepcopy(made)):
        assert copied.hub_token == "hf_secret"
    assert made.hub_token == "hf_secret"
