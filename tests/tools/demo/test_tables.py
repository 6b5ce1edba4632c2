from tools.demo.tables import comparison, table


def test_table_has_a_row_per_case_and_means_of_finite_scores() -> None:
    metrics = [
        {"case": "long name", "found": "True", "dice": "0.5", "hd": "2.0"},
        {"case": "b", "found": "False", "dice": "0.25", "hd": "inf"},
    ]
    header, _, first, second, _, means = (line.split() for line in table(metrics).splitlines())
    assert header == ["case", "found", "dice", "hd"]
    assert first == ["long", "name", "True", "0.500", "2.000"]
    assert second == ["b", "False", "0.250", "inf"]
    assert means == ["mean", "0.375", "2.000"]
    assert len({len(line) for line in table(metrics).splitlines()}) == 1


def test_comparison_has_a_row_per_score_and_method_and_a_column_per_group() -> None:
    metrics = [
        {"method": "plain", "set": "clean", "dice": "0.5", "hd": "1"},
        {"method": "plain", "set": "clean", "dice": "0.7", "hd": "inf"},
        {"method": "plain", "set": "B", "dice": "0.1", "hd": "nan"},
        {"method": "new", "set": "clean", "dice": "0.9", "hd": "2"},
        {"method": "new", "set": "B", "dice": "0.8", "hd": "3"},
    ]
    lines = comparison(metrics, across="set", scores=["dice", "hd"]).splitlines()
    assert [line.split() for line in lines if set(line) != {"-"}] == [
        ["mean", "method", "clean", "B"],
        ["dice", "plain", "0.600", "0.100"],
        ["dice", "new", "0.900", "0.800"],
        ["hd", "plain", "1.000"],
        ["hd", "new", "2.000", "3.000"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_comparison_without_groups_is_over_all_cases() -> None:
    metrics = [{"method": m, "dice": d} for m, d in (("plain", "0.5"), ("plain", "0.7"), ("new", "0.9"))]
    rows = [line.split() for line in comparison(metrics, scores=["dice"]).splitlines()]
    assert rows[0] == ["mean", "method", "all", "cases"]
    assert rows[2:] == [["dice", "plain", "0.600"], ["dice", "new", "0.900"]]
