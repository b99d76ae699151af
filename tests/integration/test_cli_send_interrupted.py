"""``alloy-async send`` when it is stopped in the middle."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import asynccontextmanager

import pytest

for _module in ("typer", "rich"):
    pytest.importorskip(_module)

from command_line import IDS, PATIENCE, Person, command, environment  # noqa: E402 - after the check

pytestmark = pytest.mark.integration


class HoldingEdge:
    """An edge that takes requests, and answers them when it is told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answering = asyncio.Event()
        self.url = ""

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                (length,) = (
                    int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"
                )
                await reader.readexactly(length)
                self.asked.set()
                await self.answering.wait()
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def edge():
    """A holding edge on loopback."""
    edge = HoldingEdge()
    server = await asyncio.start_server(edge.take, "127.0.0.1", 0)
    edge.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield edge
    edge.answering.set()
    server.close()
    await server.wait_closed()


@asynccontextmanager
async def sending(edge, *arguments, **variables):
    """Run ``send -`` with its input left open."""
    process = await asyncio.create_subprocess_exec(
        *command("send", "-", "--endpoint", edge.url, *IDS, "--opt-in", "all", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(**variables),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(process):
    """Return exit status, standard output and standard error, with the input still open."""
    output, errors = await asyncio.wait_for(
        asyncio.gather(process.stdout.read(), process.stderr.read()), PATIENCE
    )
    return await process.wait(), output.decode(), errors.decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_what_the_edge_holds_back_is_not_waited_for_longer_than_the_grace(edge, number):
    """A signal ends it although the edge does not answer, and the summary counts what is left over."""
    async with sending(edge, "--grace", "0.1") as process:
        process.stdin.write(b'{"n": 1}\n{"n": 2}\nbad\n')
        await edge.asked.wait()
        process.send_signal(number)
        status, output, errors = await ended(process)
    assert (status, output) == (128 + number, "3 lines: 0 delivered, 1 unusable, 2 failed\n")
    assert "line 3: " in errors and "Interrupted" in errors
    assert "2 lines were left over, the first is line 1" in errors


async def test_what_is_answered_within_the_grace_is_delivered(edge):
    """The answer that comes after Ctrl-C counts; input that is still open does not hold it up."""
    async with sending(edge, "--grace", "3600", "--json") as process:
        process.stdin.write(b'{"n": 1}\n')
        await edge.asked.wait()
        process.send_signal(signal.SIGINT)
        await process.stderr.readuntil(b"\n")  # it has heard the signal
        edge.answering.set()
        status, output, _ = await ended(process)
    summary = json.loads(output)
    assert status == 130 and summary["interrupted"] is True
    assert (summary["lines"], summary["delivered"], summary["stopped"]) == (1, 1, 0)


async def test_a_second_ctrl_c_ends_it_at_once(edge, tmp_path):
    """It waits for nothing any more, prints no summary, and leaves no folder behind."""
    async with sending(edge, "--grace", "3600", TMPDIR=str(tmp_path)) as process:
        process.stdin.write(b'{"n": 1}\n')
        await edge.asked.wait()
        process.send_signal(signal.SIGINT)
        await process.stderr.readuntil(b"\n")
        process.send_signal(signal.SIGINT)
        status, output, _ = await ended(process)
    assert (status, output) == (130, "")
    assert list(tmp_path.iterdir()) == []


async def test_it_sends_what_has_come_while_more_may_come(edge):
    """A line is sent when it is there, not when the pipe ends."""
    edge.answering.set()
    async with sending(edge) as process:
        process.stdin.write(b'{"n": 1}\n')
        await asyncio.wait_for(edge.asked.wait(), PATIENCE)
        process.stdin.close()
        status, output, errors = await ended(process)
    assert (status, output, errors) == (0, "1 line: 1 delivered\n", "")


async def test_ctrl_c_at_the_question_sends_nothing(edge, tmp_path):
    """Everything parked is left over, and no request was made."""
    file = tmp_path / "events.jsonl"
    file.write_bytes(b'{"n": 1}\n{"n": 2}\n')

    def interrupt() -> str:
        with Person("send", str(file), "--endpoint", edge.url, *IDS) as person:
            person.wait_for("[y/n]")
            person.type("\x03")
            assert person.end() == 130
            return person.seen

    seen = await asyncio.to_thread(interrupt)
    assert "2 lines were left over" in seen and "Traceback" not in seen
    assert not edge.asked.is_set()


async def test_a_reader_that_goes_away_stops_no_delivery(edge):
    """With ``--json`` into a pipe whose reader leaves, the events arrive all the same."""
    edge.answering.set()
    async with sending(edge, "--json") as process:
        process.stdin.write(b"bad\n")
        await process.stdout.readuntil(b"\n")
        process.stdout._transport.close()
        process.stdin.write(b'also bad\n{"n": 1}\n')
        process.stdin.close()
        errors = await asyncio.wait_for(process.stderr.read(), PATIENCE)
        assert (await process.wait(), errors) == (1, b"")
    assert edge.asked.is_set()
