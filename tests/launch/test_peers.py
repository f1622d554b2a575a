"""The watch over processes, played by threads: each has its own end of a connection to the main one."""

import contextlib
import socket
import threading
import time

import pytest

from hftk.launch import peers
from hftk.launch.peers import Ending, PeerLost


class Played:
    """A run of ``count`` processes; ``said[rank]`` is what the watch told process ``rank`` of the end of
    another."""

    def __init__(self, count, seconds=2.0, hosts=None):
        self.said = {rank: [] for rank in range(count)}
        hosts = hosts or {rank: "node-a" for rank in range(count)}
        pairs = {rank: self._connected() for rank in range(1, count)}
        lines = {rank: peers._Line(pair[0], seconds) for rank, pair in pairs.items()}
        self.ends = {0: peers._Hub(lines, hosts, 0, count, seconds, self.said[0].append)}
        for rank, pair in pairs.items():
            line = peers._Line(pair[1], seconds)
            self.ends[rank] = peers._Spoke(line, hosts[0], rank, count, seconds, self.said[rank].append)

    @staticmethod
    def _connected():
        with socket.create_server(("127.0.0.1", 0)) as server:
            near = socket.create_connection(server.getsockname())
            return server.accept()[0], near

    def kill(self, rank):
        """What the kernel does at a process's end."""
        end = self.ends[rank]
        for line in [end._line] if rank else list(end._lines.values()):
            with contextlib.suppress(OSError):
                line.socket.shutdown(socket.SHUT_RDWR)


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def told(run, rank):
    wait_until(lambda: run.said[rank])
    (ending,) = run.said[rank]
    return ending


def meet(run, *ranks):
    threads = [threading.Thread(target=run.ends[rank].meet, daemon=True) for rank in ranks]
    for thread in threads:
        thread.start()
    return threads


def test_all_wait_for_the_last_one():
    run = Played(4)
    for _ in range(3):
        early = meet(run, 0, 2, 3)
        time.sleep(0.1)
        assert all(thread.is_alive() for thread in early)
        for thread in (*early, *meet(run, 1)):
            thread.join(10)
            assert not thread.is_alive()


def test_one_that_is_ahead_waits_at_the_next_meeting():
    run = Played(2)
    first = meet(run, 1)
    meet(run, 0)
    first[0].join(10)
    second = meet(run, 1)
    time.sleep(0.1)
    assert second[0].is_alive()
    meet(run, 0)[0].join(10)
    second[0].join(10)
    assert not second[0].is_alive()


def test_a_killed_process_is_named_to_all_others():
    run = Played(3, hosts={0: "node-a", 1: "node-a", 2: "node-b"})
    run.kill(2)
    for rank in (0, 1):
        ending = told(run, rank)
        assert ending.lost and (ending.state, ending.code) == ("failed", 1)
        assert ending.message == "process 2 (on node-b) ended without a word (killed, or out of memory?)"
    with pytest.raises(PeerLost, match="process 2"):
        run.ends[0].meet()
    with pytest.raises(PeerLost, match="process 2"):
        run.ends[1].meet()


def test_processes_that_are_lost_together_are_named_together():
    run = Played(4, hosts={0: "node-a", 1: "node-a", 2: "node-b", 3: "node-b"})
    run.kill(3)
    run.kill(2)
    assert told(run, 1).message.startswith("processes 2, 3 (on node-b) ended without a word")


def test_the_end_of_the_main_process_is_noticed_by_each():
    run = Played(3, hosts={0: "node-x", 1: "node-a", 2: "node-b"})
    run.kill(0)
    for rank in (1, 2):
        assert (
            told(run, rank).message
            == "the main process of this run (on node-x) ended without a word (killed, or out of memory?)"
        )


def test_one_that_waits_is_woken_by_the_end_of_another():
    run = Played(3)
    caught = []

    def wait():
        try:
            run.ends[1].meet()
        except PeerLost as error:
            caught.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    run.kill(2)
    thread.join(10)
    assert caught and "process 2" in caught[0]


@pytest.mark.parametrize("speaker", [0, 1, 2])
def test_a_process_that_fails_says_so_itself(speaker):
    run = Played(3)
    run.ends[speaker].leave("failed", 1, "ValueError: boom")
    run.kill(speaker)
    for rank in {0, 1, 2} - {speaker}:
        ending = told(run, rank)
        assert (
            not ending.lost
            and ending.message == (f"process {speaker}: " if speaker else "") + "ValueError: boom"
        )
    assert run.said[speaker] == []


def test_goodbyes_of_a_finished_run_end_nobody():
    run = Played(3)
    for rank in (1, 0, 2):
        run.ends[rank].leave("done")
        run.kill(rank)
    time.sleep(peers.TOGETHER_SECONDS + 0.3)
    assert run.said == {0: [], 1: [], 2: []}


def test_nobody_waits_for_one_that_is_done():
    run = Played(3)
    run.ends[2].leave("done")
    for thread in meet(run, 0, 1):
        thread.join(10)
        assert not thread.is_alive()


def test_a_process_that_was_stopped_is_told_as_stopped():
    run = Played(2)
    run.ends[1].leave("stopped", 3, "stopped on request (SIGTERM)")
    run.kill(1)
    assert told(run, 0) == Ending(state="stopped", code=3, message="process 1: stopped on request (SIGTERM)")
    assert run.ends[0].verdict(0) == told(run, 0)


def test_only_those_who_know_the_secret_are_let_in():
    server = peers._serve(one_machine=True)
    port, accepted = server.getsockname()[1], {}
    thread = threading.Thread(target=peers._accept, args=(server, 1, "secret", 5.0, accepted), daemon=True)
    thread.start()
    for nonsense in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"{}\n",
        b'{"hello": "' + b"0" * 64 + b'", "rank": 1, "host": "x"}\n',
        b"[1]\n",
    ):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(nonsense)
            stranger.settimeout(5)
            assert stranger.recv(100) == b""
    assert peers._connect(["127.0.0.1"], port, "wrong", 1, 5.0) is None
    assert accepted == {}
    assert peers._connect(["127.0.0.1"], port, "secret", 1, 5.0) is not None
    thread.join(5)
    assert list(accepted) == [1] and accepted[1][1] == socket.gethostname()
    server.close()


def test_another_machine_at_the_same_address_is_not_taken_for_the_main_one():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connected = server.accept()[0]
            connected.recv(1000)
            connected.sendall(b'{"hello": "you"}\n')

        threading.Thread(target=answer, daemon=True).start()
        assert peers._connect(["127.0.0.1"], server.getsockname()[1], "secret", 1, 5.0) is None


def test_the_interface_that_gloo_was_told_comes_first(monkeypatch):
    import psutil

    def found(*addresses):
        return [type("Found", (), {"family": socket.AF_INET, "address": a})() for a in addresses]

    monkeypatch.setattr(
        psutil,
        "net_if_addrs",
        lambda: {"lo": found("127.0.0.1"), "eth0": found("10.0.0.5"), "ib0": found("10.1.0.5")},
    )
    monkeypatch.setenv("MASTER_ADDR", "node-a")
    for variable in peers._INTERFACES:
        monkeypatch.delenv(variable, raising=False)
    assert peers._addresses(False) == ["node-a", "10.0.0.5", "10.1.0.5"]
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "=ib0")
    assert peers._addresses(False) == ["10.1.0.5", "node-a", "10.0.0.5"]
    assert peers._addresses(True) == ["127.0.0.1"]


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPCNT"), reason="the system does not tell these times")
def test_the_kernel_gives_a_silent_machine_up_in_time():
    for seconds in (5.0, 30.0, 600.0):
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname()) as near,
        ):
            peers._keep_alive(near, seconds)
            idle, pause, count = (
                near.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
            )
            assert near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert seconds <= idle + pause * count <= 2 * seconds
