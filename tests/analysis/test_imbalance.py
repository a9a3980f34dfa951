"""The table of ratios; ``tests/tools/test_analyze_imbalance.py`` fills it from a config."""

from rs_d2.analysis.imbalance import imbalance_table


def test_the_table_shows_ratios_as_one_to_n():
    values = ["coco", "none", "none", 6676.4, 13.28, 6676.4, float("nan")]
    table = imbalance_table([dict(zip("abcdefg", values, strict=True))])
    assert table.splitlines()[0] == "| a | b | c | d | e | f | g |"
    assert table.splitlines()[2] == "| coco | none | none | 1:6676 | 1:13 | 1:6676 | - |"
    values[3:] = [0.5, None, 9.96, 1.0]
    table = imbalance_table([dict(zip("abcdefg", values, strict=True))])
    assert table.splitlines()[2] == "| coco | none | none | 1:0.5 | - | 1:10.0 | 1:1.0 |"
