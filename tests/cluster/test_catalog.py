"""What the ingress knows of documents and talks."""

from app.cluster.catalog import FEW, Catalog, Heat
from app.cluster.placement import ranked

THREE = {"0": 1.0, "1": 1.0, "2": 1.0}


def idle(name: str) -> int:
    return 0


def busy(name: str) -> int:
    return 1


def test_a_document_is_found_where_it_was_put_and_sizes_are_counted():
    catalog = Catalog(THREE)
    home = catalog.home("a", 5.0)
    catalog.note("a", home, 5.0)
    catalog.note("a", home, 5.0)
    assert "a" in catalog and catalog.holders("a") == (home,) and catalog.held(home) == 5.0
    assert catalog.home("a", 5.0) == home and catalog.spread() == 3.0
    catalog.forget("a")
    catalog.forget("a")
    assert "a" not in catalog and catalog.held(home) == 0.0


def test_holders_stand_in_the_order_of_the_ranking_whatever_came_first():
    catalog = Catalog(THREE)
    order = ranked("a", THREE)
    for name in reversed(order):
        catalog.note("a", name, 1.0)
    assert list(catalog.holders("a")) == order


def test_a_talk_stays_and_a_new_one_goes_where_less_is_to_do():
    catalog = Catalog(THREE)
    catalog.note("a", "0", 1.0)
    catalog.note("a", "1", 1.0)
    load = {"0": 3, "1": 0, "2": 0}.__getitem__
    assert catalog.route(["a"], "talk", True, load) == "1"
    other = {"0": 0, "1": 9, "2": 0}.__getitem__
    assert catalog.route(["a"], "talk", False, other) == "1"
    assert catalog.route(["a"], "another", True, other) == "0"


def test_a_talk_that_is_not_known_any_more_goes_to_the_same_replica_each_time():
    """As after a restart of the ingress, whatever is busy."""
    found = set()
    for load in (idle, {"0": 5, "1": 3, "2": 1}.__getitem__):
        catalog = Catalog(THREE)
        found.add(catalog.route([], "talk", False, load))
    assert found == {ranked("talk", THREE)[0]}


def test_talks_without_documents_spread_over_all_replicas():
    catalog = Catalog(THREE)
    assert {catalog.route([], f"talk {n}", True, idle) for n in range(50)} == set(THREE)


def test_a_new_document_goes_to_its_home():
    catalog = Catalog(THREE)
    assert catalog.route(["new"], "talk", True, idle, 3.0) == ranked("new", THREE)[0]


def test_what_is_asked_about_most_gets_copies_while_its_holders_are_busy():
    catalog = Catalog(THREE)
    for name in ("hot", "cold"):
        catalog.note(name, ranked(name, THREE)[0], 1.0)
    for number in range(int(FEW * 3)):
        catalog.route(["hot"], f"{number}", True, idle)
    assert catalog.due(busy) == []  # too few to tell
    for number in range(int(FEW * 3)):
        catalog.route(["hot"], f"{number}", True, idle)
    assert catalog.due(idle) == []
    assert catalog.due(busy) == [("hot", ranked("hot", THREE)[1])]
    catalog.note("hot", ranked("hot", THREE)[1], 1.0)
    assert catalog.due(busy) == [("hot", ranked("hot", THREE)[2])]
    assert Catalog(THREE, most_copies=1).due(busy) == []


def test_heat_forgets():
    heat = Heat(1)
    for _ in range(3000):
        heat.ask("before")
    for _ in range(3000):
        heat.ask("now")
    assert heat.above(0.5) == ["now"] and heat.share("before") < 1e-6
    assert 100 < heat.questions < 200  # a half-life of 100


def test_one_that_joins_is_told_what_goes_there():
    catalog = Catalog({"0": 1.0})
    names = [f"{number}" for number in range(200)]
    for name in names:
        catalog.note(name, "0", 1.0)
    going = catalog.join("1")
    assert 60 < len(going) < 140
    for name in going:
        catalog.note(name, "1", 1.0)
    assert {catalog.holders(name)[0] for name in going} == {"1"} and catalog.join("1") == []
