from __future__ import annotations

import gzip

import pytest

from raybroker.errors import SettingsError
from raybroker.protocols import csvs


def lines(count=40):
    return ["rise,age,kind", *(f"{i / 2},{i},{'SN' if i % 2 else 'AGN'}" for i in range(count))]


def read(folder, text, name="table.csv"):
    path = folder / name
    path.write_text("\n".join(text) + "\n")
    return csvs.read(path, ["kind"])


def test_a_broken_row_is_named_with_its_column_and_the_rest_is_imported(tmp_path):
    text = lines()
    text[6] = "soon,5,SN"  # the seventh row of the file
    text[9] = "1.5,8"
    text[11] = "1,2,SN,3,4"
    table, broken = read(tmp_path, text)
    assert table.num_rows == 37
    assert [one.row for one in broken] == [7, 10, 12]
    assert "column 'rise': 'soon' is not a number" in broken[0].reason
    assert "column 'kind'" in broken[1].reason
    assert "2 more cells" in broken[2].reason
    assert csvs.notes(broken)[-1] == "3 broken rows were left out; the rest is used"


def test_only_the_first_broken_rows_are_named_but_all_are_counted(tmp_path):
    text = lines(400)
    for row in range(3, 23):
        text[row] = "x,1,SN"
    said = csvs.notes(read(tmp_path, text)[1])
    assert len(said) == csvs.SHOWN + 1
    assert said[-1].startswith("20 broken rows")


def test_blank_lines_and_unknown_cells_are_no_mistakes(tmp_path):
    text = lines()
    text.insert(5, "")
    text[8] = "nan,,SN"
    table, broken = read(tmp_path, text)
    assert not broken
    assert table.num_rows == 40
    assert table["age"].null_count == 1


def test_numbers_of_rows_hold_behind_a_blank_line(tmp_path):
    text = [*lines(30), "", "bad,1,SN"]
    assert [one.row for one in read(tmp_path, text)[1]] == [33]


def test_a_column_of_text_stays_text(tmp_path):
    table, broken = read(tmp_path, ["rise,band,kind", *("1,g,SN" for _ in range(9)), "2,3,AGN"])
    assert not broken
    assert table["band"].to_pylist()[-1] == "3"


def test_gzip_is_read(tmp_path):
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress("\n".join(lines()).encode()))
    assert csvs.read(path, ["kind"])[0].num_rows == 40


@pytest.mark.parametrize(
    ("text", "said"), [("", "cannot be read as CSV"), ("a,a\n1,2\n", "the header has 'a' twice")]
)
def test_what_is_no_table_says_so(tmp_path, text, said):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(SettingsError, match=said):
        csvs.read(path, [])
