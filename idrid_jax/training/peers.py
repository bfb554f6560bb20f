"""A line between the processes of one run, beside JAX's own: who is there, what each has, and who is gone.

JAX's coordination service meets a process that never comes, or dies, by aborting the others with a stack trace, after a
heartbeat has been missed. Here process 0 listens at the coordinator's address, the others connect before JAX does
and stay connected: one JSON object a line. A connection that ends is a process that died, known at once and by name;
whoever loses one says so in one line and ends.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from idrid_jax.errors import UserError

BEAT, SILENCE = 5.0, 40.0  # seconds: a sign of life every so often; none for so long is a machine that is gone
_END = "end"


class Alone:
    """The only process of a run: what `Peers` offers, without anybody."""

    index, count = 0, 1
    timeout = None  # seconds that the others have to come, and then to say what they have

    def gather(self, name: str, make: Callable[[], Any], *, timeout: float | None = None) -> list:
        """What `make` returned on each process, by index: JSON values. Every process must call it, in the same order.

        timeout: seconds that process 0 waits for the others; None for as long as they live. A UserError of one
        process is raised on all, naming it.
        """
        return [make()]

    def first(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returned on process 0, which alone calls it."""
        return self.gather(name, lambda: make() if self.index == 0 else None)[0]


class Peers(Alone):
    """This process among those of its run."""

    def __init__(self, address: str, index: int, count: int, timeout: float):
        """Returns once all are there. address: HOST:PORT, where process 0 listens.

        Raises UserError for an address that cannot be, and where the others are not there after `timeout` seconds:
        how many are, and which are not.
        """
        self.index, self.count, self.timeout = index, count, timeout
        self._links: dict[int, _Link] = {}
        self._names: dict[int, str] = {index: _name(index, socket.gethostname(), os.getpid())}
        self._changed = threading.Condition()
        self._gathered: dict[str, dict[int, Any]] = {}  # process 0: what has come
        self._results: dict[str, list] = {}
        self._gathers = 0
        self._welcomed = False
        self._ending = threading.Lock()
        threading.Thread(target=self._beat, daemon=True).start()
        host, port = split_address(address)
        if index == 0:
            self._listen(host, port, timeout)
        else:
            self._connect(host, port, timeout)

    def gather(self, name, make, *, timeout=None):
        try:
            value = {"value": make()}
        except UserError as error:
            value = {"error": str(error)}
        self._gathers += 1
        values = self._exchange(name if name == _END else f"{self._gathers} {name}", value, timeout)
        errors = {index: value["error"] for index, value in enumerate(values) if "error" in value}
        if errors:
            index, text = next(iter(errors.items()))
            everyone = len(errors) == self.count and len(set(errors.values())) == 1
            raise UserError(text if everyone else f"process {index}: {text}")
        return [value["value"] for value in values]

    def end(self) -> None:
        """Waits until all have come to their end; from then on nobody is missed."""
        self.gather(_END, lambda: None)
        for link in self._links.values():
            link.close()

    def fail(self, text: str, status: int) -> None:
        """Says why this process ends, here and on the others, and ends all of them."""
        others = f"{self._names[self.index]} stopped: {text}"
        self._end(text, status, {"kind": "failed", "text": others, "status": status})

    def await_loss(self, seconds: float) -> None:
        """An error of a collective is mostly the loss of a peer, which ends this process while it waits here."""
        time.sleep(seconds)

    # -- Meeting

    def _listen(self, host, port, timeout):
        local = host in ("localhost", "127.0.0.1", "::1")
        try:
            if socket.has_dualstack_ipv6() and not local:
                server = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
            else:
                server = socket.create_server(("127.0.0.1" if local else "", port), backlog=128)
        except OSError as error:
            raise UserError(
                f"coordinator {host}:{port}: process 0 cannot listen there ({error.strerror}): "
                "is another run there? choose another port with --coordinator_address"
            ) from error
        deadline = time.monotonic() + timeout
        with server:
            while len(self._links) < self.count - 1 and (left := deadline - time.monotonic()) > 0:
                server.settimeout(left)
                with contextlib.suppress(OSError):  # nobody within the time, or gone before it said who it is
                    self._welcome(_Link(server.accept()[0]))
        missing = [index for index in range(1, self.count) if index not in self._links]
        if missing:
            some = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            text = (
                f"{self.count - len(missing)} of {self.count} processes are there after {timeout:g} s; not there: "
                f"{some}: look at what they say, or give them longer with --join_timeout"
            )
            self._tell({"kind": "failed", "text": text, "status": 2})
            raise UserError(text)
        self._tell({"kind": "welcome", "names": self._names})

    def _welcome(self, link):
        """Takes in a process that says who it is; whatever else connects is let go."""
        hello = link.receive(timeout=5)
        if hello is None or not {"index", "count", "host", "pid"} <= hello.keys():
            link.close()
            return
        index, problem = hello["index"], ""
        if hello["count"] != self.count:
            problem = f"process {index} was started as one of {hello['count']}, process 0 as one of {self.count}"
        elif index in self._names:
            problem = f"process {index} is there twice: {self._names[index]}, and host {hello['host']}"
        if problem:
            problem += ": start each with the same --num_processes and its own --process_id"
            self._tell({"kind": "failed", "text": problem, "status": 2}, link)
            self._end(problem, 2, {"kind": "failed", "text": problem, "status": 2})
        self._names[index] = _name(index, hello["host"], hello["pid"])
        self._links[index] = link
        threading.Thread(target=self._read, args=(index, link), daemon=True).start()

    def _connect(self, host, port, timeout):
        deadline = time.monotonic() + timeout
        while True:
            try:
                link = _Link(socket.create_connection((host, port), timeout=min(5, timeout)))
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"process {self.index} of {self.count}: process 0 did not answer at {host}:{port} within "
                        f"{timeout:g} s ({error.strerror or error}): look at what it says, or give it longer with "
                        "--join_timeout"
                    ) from error
                time.sleep(0.2)
        self._names[0], self._links[0] = f"process 0 (at {host})", link
        hello = {"kind": "hello", "index": self.index, "count": self.count}
        link.send(hello | {"host": socket.gethostname(), "pid": os.getpid()})
        threading.Thread(target=self._read, args=(0, link), daemon=True).start()
        with self._changed:  # process 0 says when all are there, or that they are not
            self._changed.wait_for(lambda: self._welcomed)

    # -- Talking

    def _exchange(self, key, value, timeout):
        if self.index == 0:
            self._take(0, key, value)
        else:
            self._links[0].send({"kind": "value", "key": key, "value": value})
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._results, timeout if self.index == 0 else None):
                there = self._gathered[key]
                missing = ", ".join(name for index, name in sorted(self._names.items()) if index not in there)
                raise UserError(f"after {timeout:g} s still waiting, at {key.partition(' ')[2]!r}, for {missing}")
            return self._results[key] if key == _END else self._results.pop(key)

    def _take(self, index, key, value):
        with self._changed:
            values = self._gathered.setdefault(key, {})
            values[index] = value
            if len(values) < self.count:
                return
            self._results[key] = result = [values[i] for i in range(self.count)]
            del self._gathered[key]
            self._tell({"kind": "values", "key": key, "values": result})
            self._changed.notify_all()

    def _read(self, index, link):
        while (message := link.receive(timeout=SILENCE)) is not None:
            match message["kind"]:
                case "value":
                    self._take(index, message["key"], message["value"])
                case "values":
                    with self._changed:
                        self._results[message["key"]] = message["values"]
                        self._changed.notify_all()
                case "welcome":
                    with self._changed:
                        self._names = {int(i): name for i, name in message["names"].items()}
                        self._welcomed = True
                        self._changed.notify_all()
                case "failed":
                    link.open = False  # it ends by itself
                    self._end(message["text"], message["status"], message)
        if _END in self._results:
            return
        text = f"{self._names[index]} is gone (killed, or its machine lost): the same command resumes"
        self._end(text, 1, {"kind": "failed", "text": text, "status": 1})

    def _tell(self, message, *links):
        for link in links or list(self._links.values()):
            with contextlib.suppress(OSError):  # its reader sees that it is gone
                link.send(message)

    def _beat(self):
        while True:
            time.sleep(BEAT)
            self._tell({"kind": "beat"})

    def _end(self, text, status, message):
        """One line, by whoever comes first; then nothing of this process runs on: JAX's threads wait for the dead."""
        self._ending.acquire()  # for good: whoever comes second waits for the end
        os.write(2, f"idrid-jax: {text}\n".encode())
        self._tell(message)
        if self.index == 0:  # JAX's service ends with it, and aborts who still listens there: let them go first
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline and any(link.open for link in self._links.values()):
                time.sleep(0.02)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(status)


class _Link:
    """A socket that carries JSON objects, one a line."""

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._buffer, self._lock = connection, b"", threading.Lock()
        self.open = True

    def send(self, message: dict) -> None:
        with self._lock:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout: float) -> dict | None:
        """The next object; None at the end, after so many seconds of silence, and for what is none of ours."""
        try:
            self._socket.settimeout(timeout)  # which fails where this end has been closed meanwhile
            while b"\n" not in self._buffer:
                if len(self._buffer) > 2**24 or not (some := self._socket.recv(2**16)):
                    self.open = False
                    return None
                self._buffer += some
            line, _, self._buffer = self._buffer.partition(b"\n")
            message = json.loads(line)
            return message if isinstance(message, dict) else None
        except (OSError, ValueError):
            self.open = False
            return None

    def close(self) -> None:
        self._socket.close()


def split_address(address: str) -> tuple[str, int]:
    """HOST:PORT or [IPv6]:PORT -> host, port. Raises UserError for anything else."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator_address {address!r}: write HOST:PORT, process 0's host and a free port")
    return host.strip("[]"), int(port)


def _name(index, host, pid):
    return f"process {index} (host {host}, pid {pid})"
