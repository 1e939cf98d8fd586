"""Clients of models: one for each connection and event loop, closed with it, and no more requests at a time than allowed."""

from __future__ import annotations

import asyncio
import gc
import warnings

import pytest
from model_server import FORMATS, Format, Reply, model_server, overloaded
from model_turns import PROVIDERS, Conversation, MemoryJournal

from kneo.agents.clients import MAX_CLIENTS, ModelClients, RequestLimit, warm_up
from kneo.agents.providers import ProviderConnection
from kneo.agents.requests import recorded_model
from kneo.agents.services import Progress
from kneo.settings import ModelSettings
from kneo.spec.models.providers import PROVIDERS as ALL
from kneo.spec.policy import ModelLimit, ModelRules


@pytest.mark.parametrize("wire", FORMATS)
def test_turns_of_one_loop_share_a_client_which_its_loop_closes(wire: Format) -> None:
    async def talk() -> int:
        services = conversation.services()
        clients = []
        for _ in range(3):
            conversation.journal.entries.clear()
            turn = conversation.turn("Hello.")
            model = await recorded_model(turn, services, Progress.of((), token_budget=None))
            await conversation.ask_model(model)
            clients.append(next(iter(services.models.clients._clients.values())))
        assert len({id(each) for each in clients}) == 1
        await services.models.close()
        assert not services.models.clients._clients
        return len(clients)

    with model_server([Reply("Hi.")]) as server:
        conversation = Conversation(server, PROVIDERS[wire])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert asyncio.run(talk()) == 3
            assert asyncio.run(talk()) == 3  # another loop, another client
            gc.collect()
    assert server.connections == 2


def test_a_client_opens_as_many_connections_as_requests_run() -> None:
    many = 130  # the client of Google's library has 100 by itself

    async def talk() -> None:
        services = conversation.services()
        turn = conversation.turn("Hello.")

        async def ask() -> None:
            model = await recorded_model(turn, services, Progress.of((), token_budget=None))
            await conversation.ask_model(model)

        await asyncio.wait_for(asyncio.gather(*(ask() for _ in range(many))), 60)
        await services.models.close()

    with model_server([Reply("Hi.", together=many)]) as server:
        conversation = Conversation(server, PROVIDERS["gemini"], settings=ModelSettings(concurrency=many))
        asyncio.run(talk())
    assert server.most_at_once == many


def test_idle_clients_beyond_a_number_are_closed() -> None:
    async def talk() -> None:
        clients = ModelClients()
        for number in range(MAX_CLIENTS + 5):
            connection = ProviderConnection(
                provider=ALL["ollama"], wire="chat", base_url=f"http://127.0.0.1:{number + 1}/v1", key=None
            )
            async with clients.lease(connection):
                assert clients._clients
        assert len(clients._clients) <= MAX_CLIENTS
        await clients.close()

    asyncio.run(talk())


def test_the_limit_of_a_connection_in_use_is_never_forgotten() -> None:
    async def talk() -> None:
        clients = ModelClients()
        connection = ProviderConnection(provider=ALL["ollama"], wire="chat", base_url="http://127.0.0.1:1/v1", key=None)
        used = clients.limit("prod", connection, 1)
        async with used.slot():
            for number in range(MAX_CLIENTS * 5):
                clients.limit(f"env-{number}", connection, 1)
            assert clients.limit("prod", connection, 1) is used

    asyncio.run(talk())


def test_no_more_requests_at_a_time_than_the_environment_allows() -> None:
    most = 3

    async def talk() -> None:
        services = conversation.services()

        async def one(number: int) -> None:
            alone = Conversation(server, model, rules=rules, journal=MemoryJournal())
            turn = alone.turn(f"Hello {number}.")
            await alone.ask_model(await recorded_model(turn, services, Progress.of((), token_budget=None)))

        await asyncio.gather(*(one(number) for number in range(20)))
        await services.models.close()

    at_once = [0, 0]
    model = {"provider": "ollama"}
    rules = ModelRules(limits=[ModelLimit(provider="ollama", concurrency=most)])
    with model_server([Reply("Hi.", delay=0.05)]) as server:
        conversation = Conversation(server, model, rules=rules)
        asyncio.run(talk())
        at_once = [server.most_at_once, len(server.requests)]
    assert at_once == [most, 20]


def test_the_limit_halves_after_a_429_and_grows_with_replies() -> None:
    with model_server([[overloaded(0.01), overloaded(0.01), Reply("Hi.")]]) as server:
        conversation = Conversation(server, PROVIDERS["chat"], settings=ModelSettings(concurrency=8))
        limits: list[float] = []

        async def talk() -> None:
            services = conversation.services()
            model = await recorded_model(conversation.turn("Hi."), services, Progress.of((), token_budget=None))
            await conversation.ask_model(model)
            limits.extend(each.limit for each in services.models.clients._limits.values())
            await services.models.close()

        asyncio.run(talk())
    assert limits == [3]


def test_a_request_that_is_cancelled_while_it_waits_leaves_its_place_to_the_next() -> None:
    async def wait() -> list[str]:
        limit, done = RequestLimit(1), []
        release = asyncio.Event()

        async def hold(name: str) -> None:
            async with limit.slot():
                done.append(name)
                await release.wait()

        tasks = [asyncio.create_task(hold(name)) for name in "abcd"]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0)
        tasks[0].cancel()  # frees the place for c, which is cancelled before it runs
        await asyncio.sleep(0)
        tasks[2].cancel()
        release.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with limit.slot():
            done.append("e")
        return done

    done = asyncio.run(wait())
    assert done[0] == "a"
    assert done[-2:] == ["d", "e"]
    assert "b" not in done


def test_libraries_are_imported_ahead_and_unknown_names_left_out() -> None:
    warm_up(["openai", "dummy", "nothing", "ollama"])
