"""Logs as a table: 80 columns, a heading where the columns change."""

from distill.training.log_table import LogTable

LOGS = {
    "loss": 3.25, "grad_norm": 1.5, "learning_rate": 2e-5, "epoch": 0.5, "ce_loss": 2.0,
    "uld_loss": 1.25, "kd_loss": 1.25, "covered_fraction": 0.625, "tokens_per_second": 12345.6,
    "store_wait_fraction": 0.0125,
}  # fmt: skip


def test_a_heading_stands_once_above_rows_that_line_up() -> None:
    table = LogTable()
    first, second = table.lines(LOGS, 10), table.lines(LOGS | {"loss": 2.5}, 20)
    heading, row = first
    assert heading.split() == [
        "step", "epoch", "loss", "ce_loss", "kd_loss", "covered", "rate", "tokens/s", "wait",
    ]  # fmt: skip
    assert row.split() == [
        "10", "0.50", "3.2500", "2.0000", "1.2500", "62.5%", "2.00e-05", "12,346", "1.2%",
    ]  # fmt: skip
    assert len(second) == 1
    assert second[0].split()[:3] == ["20", "0.50", "2.5000"]
    assert len(heading) == len(row) == len(second[0]) <= 80


def test_columns_beyond_80_are_left_out_and_a_new_one_has_a_new_heading() -> None:
    table = LogTable()
    wide = LOGS | {f"a_loss_of_a_long_name_{i}_loss": 1.0 for i in range(5)}
    lines = table.lines(wide, 1)
    assert max(map(len, lines)) <= 80
    assert len(table.lines({"loss": 1.0}, 2)) == 2
    assert len(table.lines({"loss": 1.0}, 3)) == 1
    heading, row = table.lines({"loss": 123456.0}, 4)  # wider than its column
    assert len(heading) == len(row)


def test_an_evaluation_is_a_line_and_totals_are_none() -> None:
    table = LogTable()
    logs = {"eval_ce_loss": 2.0, "eval_loss": 3.0, "eval_runtime": 1.0, "eval_uld_loss": 1.0}
    assert table.lines(logs | {"epoch": 1.0}, 1000) == [
        "held out, at step 1,000: loss 3.0000, ce_loss 2.0000, uld_loss 1.0000"
    ]
    assert table.lines({"train_runtime": 3.0, "train_loss": 1.0}, 1000) == []
