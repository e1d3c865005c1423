"""Tables: what is in which cell, and what a terminal has room for."""

import io

import pytest
from rich.console import Console

from jax_power_smc.report import tables
from jax_power_smc.report.tables import Cell, Column, Table


def printed(table, width=110):
    out = io.StringIO()
    Console(file=out, width=width).print(tables.to_rich(table))
    return [line.split() for line in out.getvalue().splitlines() if line.strip()]


def with_interval(interval):
    columns = [Column("run", is_text=True), Column("value", interval=interval)]
    rows = [[Cell("a"), Cell("1.0", "[0, 2]")], [Cell("b"), Cell("10.0", "[-9, 20]", bold=True)]]
    return Table(columns, rows)


@pytest.mark.parametrize(
    ("interval", "head", "shown"),
    [
        ("none", ["run", "value"], []),
        ("column", ["run", "value", "95%"], ["[-9,", "20]"]),
        ("inline", ["run", "value"], ["[-9,", "20]"]),
    ],
)
def test_intervals_have_a_column_or_follow_the_value_or_are_left_out(interval, head, shown):
    lines = printed(with_interval(interval))
    assert lines[0] == head and lines[-1] == ["b", "10.0", *shown]


def test_a_pivot_leaves_missing_values_empty_and_keeps_the_order_of_its_headings():
    entries = [(("x", 1), "b", "1.5"), (("x", 2), "a", "2.5"), (("x", 1), "a", "3.5")]
    made = tables.pivot("title", ("name", "N"), entries, {"a": "A", "b": "B", "c": "C"})
    assert [column.heading for column in made.columns] == ["name", "N", "A", "B"]
    assert [[cell.text for cell in row] for row in made.rows] == [
        ["x", "1", "3.5", "1.5"],
        ["x", "2", "2.5", ""],
    ]
    assert [column.is_text for column in made.columns] == [True, True, False, False]
    assert [c.heading for c in tables.pivot("", ("n",), [(("x",), "b", "1")]).columns] == ["n", "b"]


def test_nothing_is_markup_and_nothing_is_hidden(capsys):
    tables.print_tables([tables.text_table("[b]title[/b]", ["[i]h"], [["[red]x\x1b[31m"]])])
    out = capsys.readouterr().out
    assert "[b]title[/b]" in out and "[i]h" in out and "[red]x<U+001B>[31m" in out


def test_a_table_without_rows_is_not_printed(capsys):
    tables.print_tables([tables.text_table("title", ["a"], [])])
    assert capsys.readouterr().out == ""


def test_what_fits_a_console():
    made = tables.text_table("", ["a", "b"], [["x" * 30, "y" * 30]])
    assert tables.fits(Console(width=80), made) and not tables.fits(Console(width=50), made)
