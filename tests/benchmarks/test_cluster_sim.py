"""The simulator of many replicas: its clock, and that its verdict can come out both ways."""

import json
import sys

import pytest

from benchmarks import cluster_sim


def test_one_answer_takes_its_time_and_two_together_longer():
    replica = cluster_sim.Replica(left={1: 5.0})
    assert replica.next_end() == (5.0, 1)
    replica.advance(2.0)
    replica.left[2] = 4.0
    when, ticket = replica.next_end()
    assert ticket == 1 and when == pytest.approx(2.0 + 3.0 * 2 / cluster_sim.speed(2))
    assert cluster_sim.speed(1) == 1 and cluster_sim.speed(8) == pytest.approx(cluster_sim.GAIN)


def test_waiting_grows_with_the_load_and_hot_documents_need_copies():
    def at(load: float, copies: int | None = None) -> dict:
        return cluster_sim.Simulation(10, 300, 50, 1.0, copies, 0).run(load, 3000, 1000)

    calm, full, single = at(0.3), at(0.95), at(0.95, 1)
    assert calm["wait_p99_s"] < full["wait_p99_s"]
    assert full["copies"] > 0 == single["copies"]
    assert single["largest_load"] > 1.4 * full["largest_load"]


@pytest.mark.parametrize(("most", "code"), [(9.0, 0), (0.5, 1)])
def test_the_verdict(tmp_path, monkeypatch, most, code):
    output = tmp_path / "sim.json"
    flags = "--replicas 5 --documents 50 --users 9 --questions 300 --warm-up 100 --loads 0.5".split()
    monkeypatch.setattr(sys, "argv", ["cluster_sim.py", *flags, "--output", str(output)])
    monkeypatch.setattr(cluster_sim, "MOST_LOAD", most)
    monkeypatch.setattr(cluster_sim, "MOST_MOVED", 1.0)
    assert cluster_sim.main() == code
    assert json.loads(output.read_text())["right"] is (code == 0)
