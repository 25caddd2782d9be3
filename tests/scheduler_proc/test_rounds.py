"""Clients with much to ask and clients with little take turns."""

import random

import msgspec

from scheduler_proc import rounds
from scheduler_proc.rounds import QUANTUM, Rounds
from tests.scheduler_proc.world import World


def test_clients_of_one_request_each_are_served_in_the_order_in_which_they_come() -> None:
    turns, places = Rounds(), list[int]()
    for _ in range(1000):
        places.append(turns.place(0, random.Random(len(places)).randrange(3 * QUANTUM)))
        if random.Random(-len(places)).random() < 0.5:
            turns.begin(places[len(places) // 2])
    assert places == sorted(places)
    assert not len(turns)


def test_the_requests_of_one_client_stay_in_their_order() -> None:
    turns = Rounds()
    places = [turns.place(1, tokens) for tokens in (QUANTUM, 1, 5 * QUANTUM, 1, 10**9, 1)]
    assert places == sorted(places)


def test_a_client_with_a_little_work_stands_before_all_but_a_round_of_one_with_much() -> None:
    turns = Rounds()
    many = [turns.place(1, QUANTUM // 2) for _ in range(1000)]
    for number in many[:100]:
        turns.begin(number)
    newcomer = turns.place(2, 100)
    assert sum(many[99] < number <= newcomer for number in many[100:]) <= 2


def test_newcomers_without_end_starve_nobody() -> None:
    turns = Rounds()
    busy = [turns.place(1, QUANTUM) for _ in range(4)]
    waiting = [(number, order) for order, number in enumerate(busy)]
    served = []
    for order in range(4, 40):  # for each request that is served, a newcomer comes
        waiting.append((turns.place(0, 10), order))
        number, first = min(waiting)
        waiting.remove((number, first))
        turns.begin(number)
        served.append(first)
    assert {0, 1, 2, 3} <= set(served)
    assert served.index(3) <= 2 * 4 + 1


def test_clients_that_had_their_turn_are_forgotten() -> None:
    turns = Rounds()
    for line in range(1, 10 * rounds._MOST_LINES):
        turns.begin(turns.place(line, 100))
    assert len(turns) <= rounds._MOST_LINES + 1


def test_a_flood_of_one_client_lets_others_in_between() -> None:
    world = World(slots=2)
    for number in range(50):
        message = world.message(number, range(8), max_tokens=QUANTUM)
        world.feed(msgspec.structs.replace(message, line=1))  # as many as it may take: they end at the context's end
    world.add(100, range(8), max_tokens=2)
    ahead = world.state.admission.waiting.num_ahead(world.state.requests[100])
    assert ahead <= 1
    world.drain()
    world.check()
