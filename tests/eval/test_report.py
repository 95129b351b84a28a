import pytest

from app.eval import report


@pytest.mark.parametrize(
    ("right", "trials", "bound"),
    [
        (3, 3, 0.368),
        (10, 10, 0.741),
        (20, 20, 0.861),
        (59, 59, 0.9505),
        (100, 100, 0.9705),
        (0, 7, 0.0),
        (19, 20, 0.784),
    ],
)
def test_lower_bound_is_clopper_pearson(right: int, trials: int, bound: float) -> None:
    assert report.lower_bound_95(right, trials) == pytest.approx(bound, abs=5e-4)


def test_lower_bound_leaves_five_percent() -> None:
    bound = report.lower_bound_95(41, 50)
    assert report._at_least(41, 50, bound) == pytest.approx(0.05, abs=1e-9)


def test_lower_bound_refuses_more_right_than_trials() -> None:
    with pytest.raises(ValueError, match="right 3 of trials 2"):
        report.lower_bound_95(3, 2)


def test_standard_error() -> None:
    assert report.standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(0.6454972)
    assert report.standard_error([1.0]) is None


def test_table_aligns_numbers_right() -> None:
    assert report.table(["name", "tokens"], [["a", 12345], ["bcdefg", 7]]).splitlines() == [
        "name    tokens",
        "------  ------",
        "a       12,345",
        "bcdefg       7",
    ]
    assert report.table(["x"], [[None], [0.5]]).splitlines()[2:] == ["    -", "0.500"]
