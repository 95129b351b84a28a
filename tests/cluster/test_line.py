"""The queue before a replica."""

import asyncio

import pytest

from app.cluster.line import FullError, Gate, Line, WaitedError


def test_first_come_first_served_so_many_at_once():
    line: Line[str] = Line(2, 4)
    assert [line.enter(name) for name in "abcd"] == [["a"], ["b"], [], []]
    with pytest.raises(FullError) as full:
        line.enter("e")
    assert full.value.waiting == 4
    assert line.leave("c") == []  # gave up
    assert line.leave("a") == ["d"] and len(line) == 2
    assert line.leave("b") == [] and line.leave("d") == [] and len(line) == 0


def test_while_held_all_wait():
    line: Line[str] = Line(2, 4)
    line.held = True
    assert line.enter("a") == [] and line.enter("b") == []
    line.held = False
    assert line.start() == ["a", "b"]


def test_a_place_is_given_back_whatever_happens():
    async def run() -> None:
        gate = Gate(1, 2)
        with pytest.raises(RuntimeError):
            async with gate.place(1):
                with pytest.raises(WaitedError):
                    async with gate.place(0.01):
                        pass
                waiting = asyncio.create_task(_through(gate))
                await asyncio.sleep(0)
                with pytest.raises(FullError):
                    await _through(gate)
                waiting.cancel()
                await asyncio.sleep(0.01)
                assert len(gate) == 1
                raise RuntimeError
        assert len(gate) == 0
        await _through(gate)

    asyncio.run(run())


def test_closing_waits_for_those_inside_and_keeps_others_waiting():
    async def run() -> list[str]:
        gate, seen = Gate(1, 9), []
        inside = asyncio.create_task(_through(gate, 0.02, lambda: seen.append("first")))
        await asyncio.sleep(0)
        closing = asyncio.create_task(_closed(gate, seen))
        await asyncio.sleep(0)
        late = asyncio.create_task(_through(gate, 0, lambda: seen.append("late")))
        await asyncio.gather(inside, closing, late)
        return seen

    assert asyncio.run(run()) == ["first", "closed", "late"]


async def _through(gate: Gate, seconds: float = 0.0, then=lambda: None) -> None:
    async with gate.place(5):
        await asyncio.sleep(seconds)
        then()


async def _closed(gate: Gate, seen: list[str]) -> None:
    async with gate.closed():
        await asyncio.sleep(0.01)
        seen.append("closed")
