"""CSV tables as text and checked numbers: what is kept, and what a message names."""

import numpy as np
import pytest

from alignment_security.common.files import UserError
from alignment_security.common.tables import read_table, to_numbers
from alignment_security.common.text import text_lines


def write(folder, text):
    path = folder / "table.csv"
    path.write_text(text)
    return path


def test_read_table_keeps_every_cell_as_text(tmp_path):
    path = write(tmp_path, "model,n,extra\nNA,007,\nNone,1e3,x\n")
    table = read_table(path, ["model", "n"], "")
    assert table.to_numpy().tolist() == [["NA", "007", ""], ["None", "1e3", "x"]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a table"),
        ('a,b\n"', "not a table"),
        ("a,b\n1,2\n1,2,3\n", "not a table .*line 3"),
        ("a,c\n1,2\n", "no column b, d; make it again"),
        ("a;b;d\n1;2;3\n", "not a table .* separated by ';'"),
        ("a\tb\td\n1\t2\t3\n", r"not a table .* separated by '\\t'"),
        ("sep=;\na;b;d\n1;2;3\n", "not a table .*`sep=`: delete that line"),
    ],
)
def test_read_table_names_the_file_and_the_fix(tmp_path, text, says):
    with pytest.raises(UserError, match=rf"table\.csv: {says}") as error:
        read_table(write(tmp_path, text), ["a", "b", "d"], "make it again")
    assert str(error.value).endswith("; make it again")


def test_read_table_of_no_file_or_other_bytes_is_an_error_of_one_line(tmp_path):
    with pytest.raises(UserError, match="not a table"):
        read_table(tmp_path / "none.csv", [], "make it")
    (tmp_path / "bytes.csv").write_bytes(b"a\n\xff\xfe\n")
    with pytest.raises(UserError, match="not a table"):
        read_table(tmp_path / "bytes.csv", [], "make it")


def test_to_numbers_converts_the_columns_that_the_table_has(tmp_path):
    path = write(tmp_path, "model,n,x\na,1,0.1\nb,2,\n")
    text = read_table(path, [], "")
    table = to_numbers(path, text, ["n", "x", "absent"], "")
    assert table["n"].tolist() == [1, 2] and table["n"].dtype == int
    np.testing.assert_array_equal(table["x"], [0.1, np.nan])
    assert text["n"].tolist() == ["1", "2"] and table["model"].tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("cell", "limits", "says"),
    [
        ("ten", {}, "'ten' is no number; fix it"),
        ("nan", {"no_value": [""]}, "'nan' is no number; fix it"),
        ("1.5", {"low": 0, "high": 1}, "'1.5' is no number from 0 to 1; fix it"),
        ("-1", {"low": 0}, "'-1' is no number from 0 to inf; fix it"),
    ],
)
def test_to_numbers_names_line_column_and_cell(tmp_path, cell, limits, says):
    path = write(tmp_path, f"x\n0.5\n{cell}\n")
    with pytest.raises(UserError) as error:
        to_numbers(path, read_table(path, [], ""), ["x"], "fix it", **limits)
    assert str(error.value) == f"{path}, line 3, column x: {says}"


@pytest.mark.parametrize("cell", ["", "nan", "NA", "None"])
def test_to_numbers_takes_what_pandas_writes_for_no_value(tmp_path, cell):
    path = write(tmp_path, f"model,x\na,0.5\nb,{cell}\n")
    table = to_numbers(path, read_table(path, [], ""), ["x"], "fix it", low=0, high=1)
    np.testing.assert_array_equal(table["x"], [0.5, np.nan])


def test_spaces_of_no_width_are_left_out_of_tables_and_lists(tmp_path):
    """Text copied from a page has them; the two names look alike in any message."""
    path = write(tmp_path, "model,n\na\u200b,1\n\ufeffb,\u20602\n")
    assert read_table(path, ["model", "n"], "").to_numpy().tolist() == [["a", "1"], ["b", "2"]]
    assert text_lines(path) == ["model,n", "a,1", "b,2"]
