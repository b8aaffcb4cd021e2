import csv
import io

from optimizer.results import Row, to_csv
from search_spaces.recipe import Recipe
from storage.records import Score


def test_csv_has_a_column_for_every_number() -> None:
    row = Row(
        trial=4,
        recipe=Recipe(method="linear", weights={"a": (0.25,), "b": (0.75,)}),
        objectives={"safety": Score(mean=0.5, stderr=0.1, n=9, unscored=1)},
        posterior={"safety": (0.55, 0.05)},
        feasible=True,
        baseline=None,
        on_front=True,
    )
    (read,) = csv.DictReader(io.StringIO(to_csv([row])))
    assert read["trial"] == "4"
    assert (float(read["weight.a"]), float(read["weight.b"])) == (0.25, 0.75)
    assert (float(read["safety.mean"]), float(read["safety.posterior_mean"]), read["safety.unscored"]) == (
        0.5,
        0.55,
        "1",
    )
    assert list(csv.DictReader(io.StringIO(to_csv([])))) == []
