"""The processes of a run watch each other: a lost one ends the others within seconds, and a busy one is
waited for without limit.

Every process holds one connection to the main process. A process that ends without a word closes its
connection, and a machine or a link that is gone answers no keep-alive probes (RFC 9293, section 3.8.4). Both
are the kernel's business: it does not matter what Python is busy with. Gloo and NCCL notice the first late
and the second after their time-out, half an hour; and that time-out also ends a run in which one process
alone works for longer, so :meth:`Peers.meet` lets processes wait for each other without any.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

CONNECT_SECONDS = 10.0
"""How long one address of the main process is tried, and how long it waits for the first word of whoever
connects."""
ANSWER_SECONDS = 6 * CONNECT_SECONDS
"""How long a process waits for the answer: others may stand before it, strangers that say nothing among
them."""
TOGETHER_SECONDS = 0.5
"""Processes that are lost within this time of each other are named together: a machine seldom loses one
alone."""
_LONGEST_LINE = 1 << 20
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME")


class PeerLost(ConnectionError):
    """Another process of this run has ended, so that what this one waits for never comes."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How another process ended, and so the run."""

    state: str
    """As in ``status.json``: stopped, wrong input, failed."""
    code: int
    message: str
    lost: bool = False
    """Whether it ended without a word of its own."""


class Peers(ABC):
    """This process's end of the watch; made by :func:`watch`."""

    def __init__(self, rank: int, processes: int, seconds: float, act: Callable[[Ending], None]) -> None:
        self.rank, self.processes, self.seconds, self.act = rank, processes, seconds, act
        self.ending: Ending | None = None
        """How the run ends because of another process, once that is known."""
        self._changed = threading.Condition()
        self._met = self._gone_on = 0
        self._left = False

    def meet(self) -> None:
        """Returns when every process has come here as often as this one, however long that takes.

        Raises PeerLost where one of them has ended.
        """
        self._met += 1
        self._arrive(self._met)
        with self._changed:
            while self._gone_on < self._met:
                if self.ending is not None:
                    raise PeerLost(self.ending.message)
                self._changed.wait(1.0)

    def leave(self, state: str, code: int = 0, message: str = "") -> None:
        """Says goodbye with the state of ``status.json``; the others end too unless this one is done or
        stopped on request."""
        if not self._left:
            self._left = True
            self._say_goodbye({"bye": state, "code": code, "message": message})

    def verdict(self, seconds: float) -> Ending | None:
        """How another process ended the run, waiting at most so long for the news."""
        with self._changed:
            self._changed.wait_for(lambda: self.ending is not None, seconds)
            return self.ending

    @abstractmethod
    def _arrive(self, count: int) -> None: ...

    @abstractmethod
    def _say_goodbye(self, word: dict[str, Any]) -> None: ...

    def _go_on(self, count: int) -> None:
        with self._changed:
            self._gone_on = max(self._gone_on, count)
            self._changed.notify_all()

    def _end(self, ending: Ending) -> None:
        with self._changed:
            first, self.ending = self.ending is None, self.ending or ending
            self._changed.notify_all()
        if first and not self._left:
            threading.Thread(target=self.act, args=(ending,), daemon=True, name="peer-lost").start()


class _Hub(Peers):
    """The main process's end: it holds a connection to every other process and tells each what the others
    need to know."""

    def __init__(self, lines: dict[int, _Line], hosts: dict[int, str], *settings: Any) -> None:
        super().__init__(*settings)
        self._lines, self._hosts = lines, hosts
        self._arrived = dict.fromkeys(range(self.processes), 0)
        self._gone: set[int] = set()
        self._lost: dict[int, str] = {}
        self._since = 0.0
        threading.Thread(target=self._listen, daemon=True, name="peers").start()

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, line in self._lines.items():
                selector.register(line.socket, selectors.EVENT_READ, rank)
            while selector.get_map() or self._lost:
                if not selector.get_map():  # Windows cannot select among none
                    time.sleep(TOGETHER_SECONDS)
                for key, _ in selector.select(0.1 if self._lost else None) if selector.get_map() else ():
                    rank = key.data
                    try:
                        for word in self._lines[rank].read():
                            self._hear(rank, word)
                    except OSError as error:
                        selector.unregister(key.fileobj)
                        self._lines[rank].close()
                        if rank not in self._gone:
                            self._lost[rank] = _why(error, self.seconds)
                            self._since = self._since or time.monotonic()
                if self._lost and time.monotonic() - self._since > TOGETHER_SECONDS:
                    self._tell_of_lost()

    def _hear(self, rank: int, word: dict[str, Any]) -> None:
        if "here" in word:
            self._arrive(word["here"], rank)
        elif "bye" in word:
            self._gone.add(rank)
            if word["bye"] == "done":
                return self._arrive(sys.maxsize, rank)
            where = (
                f"process {rank}, on {self._hosts[rank]}"
                if self._hosts[rank] != self._hosts[0]
                else f"process {rank}"
            )
            self._spread(Ending(state=word["bye"], code=word["code"], message=f"{where}: {word['message']}"))

    def _tell_of_lost(self) -> None:
        lost, self._lost = self._lost, {}
        self._gone.update(lost)
        why = lost[min(lost)]
        self._spread(Ending(state="failed", code=1, message=f"{_named(lost, self._hosts)} {why}", lost=True))

    def _spread(self, ending: Ending) -> None:
        for rank, line in self._lines.items():
            if rank not in self._gone:
                line.send({"ending": asdict(ending)})
        self._end(ending)

    def _arrive(self, count: int, rank: int = 0) -> None:
        with self._changed:
            self._arrived[rank] = count
            all_came = min(self._arrived.values())
            if all_came <= self._gone_on:
                return
        for line in self._lines.values():
            line.send({"go": all_came})
        self._go_on(all_came)

    def _say_goodbye(self, word: dict[str, Any]) -> None:
        if word["bye"] not in ("done", "stopped") and self.ending is None:
            ending = Ending(state=word["bye"], code=word["code"], message=word["message"])
            for rank, line in self._lines.items():
                if rank not in self._gone:
                    line.send({"ending": asdict(ending)})
        for line in self._lines.values():
            line.send(word)


class _Spoke(Peers):
    """The end of any other process."""

    def __init__(self, line: _Line, host: str, *settings: Any) -> None:
        super().__init__(*settings)
        self._line, self._host = line, host
        threading.Thread(target=self._listen, daemon=True, name="peers").start()

    def _listen(self) -> None:
        main_left = False
        try:
            while True:
                for word in self._line.read():
                    if "go" in word:
                        self._go_on(word["go"])
                    elif "ending" in word:
                        self._end(Ending(**word["ending"]))
                    elif "bye" in word:
                        main_left = True
                        if word["bye"] == "stopped":
                            self._end(Ending(state="stopped", code=word["code"], message=word["message"]))
        except OSError as error:
            if not main_left:
                where = f" (on {self._host})" if self._host != socket.gethostname() else ""
                message = f"the main process of this run{where} {_why(error, self.seconds)}"
                self._end(Ending(state="failed", code=1, message=message, lost=True))

    def _arrive(self, count: int) -> None:
        self._line.send({"here": count})

    def _say_goodbye(self, word: dict[str, Any]) -> None:
        self._line.send(word)


def watch(rank: int, processes: int, seconds: float, act: Callable[[Ending], None]) -> Peers | str:
    """Connects all processes of the running ``torch.distributed`` group; every one of them calls this.

    ``act`` is called in a thread of its own, once, when another process has ended in any way but "done".
    ``seconds`` without an answer, and a process counts as lost. Returns a line that says why, on every
    process, where one of them cannot connect.
    """
    from accelerate.utils import broadcast_object_list, gather_object

    settings = (rank, processes, seconds, act)
    one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(processes)
    server = _serve(one_machine) if rank == 0 else None
    offer: list[Any] = [None]
    if server is not None:
        offer = [
            (_addresses(one_machine), server.getsockname()[1], secrets.token_hex(16), socket.gethostname())
        ]
    broadcast_object_list(offer, from_process=0)
    addresses, port, secret, main_host = offer[0]
    made: Peers | None = None
    problem = ""
    if server is not None:
        accepted: dict[int, tuple[_Line, str]] = {}
        accepting = threading.Thread(
            target=_accept, args=(server, processes - 1, secret, seconds, accepted), daemon=True
        )
        accepting.start()
    else:
        line = _connect(addresses, port, secret, rank, seconds)
        if line is None:
            problem = (
                f"process {rank}, on {socket.gethostname()}, cannot reach {main_host} at any of"
                f" {', '.join(addresses)}, port {port}"
            )
        else:
            made = _Spoke(line, main_host, *settings)
    problems = [p for p in gather_object([problem]) if p]
    if server is not None:
        if problems:
            server.close()
        else:
            accepting.join()
            server.close()
            lines = {number: line for number, (line, _) in accepted.items()}
            hosts = {0: main_host, **{number: host for number, (_, host) in accepted.items()}}
            made = _Hub(lines, hosts, *settings)
    if problems:
        if made is not None:
            made.leave("done")
        return problems[0]
    assert made is not None
    return made


class _Line:
    """A connection over which small JSON objects go, one a line."""

    def __init__(self, connected: socket.socket, seconds: float) -> None:
        self.socket = connected
        self._rest = b""
        self._sending = threading.Lock()
        _keep_alive(connected, seconds)

    def send(self, word: dict[str, Any]) -> None:
        """What cannot be sent is dropped: the reader finds out that the other end is gone."""
        with self._sending, contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(word).encode() + b"\n")

    def read(self) -> list[dict[str, Any]]:
        """What has come, waiting for some; ConnectionError where the other end is closed, TimeoutError where
        it does not answer."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionResetError("closed")
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            raise ConnectionResetError("not one of ours")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        self.socket.close()


def _keep_alive(connected: socket.socket, seconds: float) -> None:
    """Lets the kernel probe a silent connection, and give it up after ``seconds`` without an answer (system's
    own times: hours)."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    probes = 9
    pause = max(1, round(seconds / (probes + 1)))
    options = {"TCP_KEEPIDLE": pause, "TCP_KEEPALIVE": pause, "TCP_KEEPINTVL": pause, "TCP_KEEPCNT": probes}
    # Where something is on its way, no probes are sent: RFC 5482.
    options["TCP_USER_TIMEOUT"] = max(1000, round(1000 * seconds))
    if sys.platform == "darwin":
        options.pop("TCP_USER_TIMEOUT")
    for name, value in options.items():
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _serve(one_machine: bool) -> socket.socket:
    if one_machine:
        return socket.create_server(("127.0.0.1", 0), backlog=1024)
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # a kernel without IPv6
            return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", 0), backlog=1024)


def _addresses(one_machine: bool) -> list[str]:
    """Where the others may reach this machine, the likeliest first: the interface that gloo or NCCL was told,
    the launcher's address of the main machine, all others."""
    if one_machine:
        return ["127.0.0.1"]
    import psutil

    by_interface = {
        name: [
            a.address for a in found if a.family in (socket.AF_INET, socket.AF_INET6) and "%" not in a.address
        ]
        for name, found in psutil.net_if_addrs().items()
    }
    told = [name.strip("=^ ") for variable in _INTERFACES for name in os.environ.get(variable, "").split(",")]
    likely = [address for name in told for address in by_interface.get(name, [])]
    all_others = [
        a for found in by_interface.values() for a in found if not a.startswith("127.") and a != "::1"
    ]
    return list(dict.fromkeys([*likely, *filter(None, [os.environ.get("MASTER_ADDR")]), *all_others]))


def _accept(
    server: socket.socket, count: int, secret: str, seconds: float, accepted: dict[int, tuple[_Line, str]]
) -> None:
    """Takes connections of those who know the ``secret`` until there are ``count``; ends when the server is
    closed."""
    while len(accepted) < count:
        try:
            connected, _ = server.accept()
        except OSError:
            return
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            connected.settimeout(CONNECT_SECONDS)
            line = _Line(connected, seconds)
            (word,) = line.read()
            if secrets.compare_digest(str(word["hello"]), _proof(secret, "peer")):
                line.send({"hello": _proof(secret, "main")})
                connected.settimeout(None)
                accepted[int(word["rank"])] = line, str(word["host"])
                continue
        connected.close()


def _connect(addresses: Sequence[str], port: int, secret: str, rank: int, seconds: float) -> _Line | None:
    """A connection to the main process, at the first of the addresses where it answers."""
    for address in addresses:
        with contextlib.suppress(OSError, ValueError):
            connected = socket.create_connection((address, port), timeout=CONNECT_SECONDS)
            connected.settimeout(ANSWER_SECONDS)
            line = _Line(connected, seconds)
            line.send({"hello": _proof(secret, "peer"), "rank": rank, "host": socket.gethostname()})
            if line.read() == [
                {"hello": _proof(secret, "main")}
            ]:  # another machine may have that address, too
                connected.settimeout(None)
                return line
            connected.close()
    return None


def _proof(secret: str, who: str) -> str:
    return hashlib.sha256(f"{who} {secret}".encode()).hexdigest()


def _why(error: OSError, seconds: float) -> str:
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "ended without a word (killed, or out of memory?)"
    return f"cannot be reached any more (no answer for {seconds:g} s: is its machine or the network down?)"


def _named(ranks: Iterator[int] | Sequence[int] | dict[int, str], hosts: dict[int, str]) -> str:
    """Such as "process 1" or "processes 2, 3 (on node2)"; the machine is named where it is another than the
    main one."""
    numbers = sorted(ranks)
    places = sorted({hosts[number] for number in numbers} - {hosts[0]})
    text = f"process{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
    return text + (f" (on {', '.join(places)})" if places else "")
