"""Pipes between the hosts of one worker, over TCP: who is let in, who is there, and when somebody is gone.

The first host binds three ports in a row: what the others report comes in at the first, what all of them are to do goes out at the
second, and JAX's own coordinator listens at the third. The others connect, and need no open port for these.
"""

import hashlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from protocol.channel import Receiver, Sender
from protocol.config import EngineConfig
from protocol.errors import AddressError, ConfigError
from protocol.host_messages import FROM_FOLLOWER, FROM_LEADER, FollowerToLeader, LeaderToFollower

_BEATS = 5  # in the time after which a peer that does not answer is gone
_LONGEST_TTL_MS = 6_553_500  # ZeroMQ counts tenths of seconds in 16 bits

_EVENTS = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_MONITORED = (zmq.PULL, zmq.SUB)  # of the two pipes of a host, the one that it reads

# What failed handshakes have to do with the token: its two ends have different ones, or one of them has none.
_WRONG_TOKEN = (zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC, zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)


@dataclass(frozen=True, slots=True)
class Network:
    """What a pipe between hosts asks of its connections."""

    peers: tuple[str, ...]  # addresses that may connect, for an end that binds
    secret: str  # both ends know it, and what passes is encrypted (CurveZMQ, keys derived from it); empty: nothing of that
    silence: float  # seconds after which a peer whose process does not answer is disconnected

    def apply(self, pipe: "zmq.Socket[bytes]", *, bind: bool) -> None:
        """Sets the options of a socket that is yet to bind or to connect."""
        silence = int(self.silence * 1000)
        pipe.setsockopt(zmq.HEARTBEAT_IVL, max(1, silence // _BEATS))
        pipe.setsockopt(zmq.HEARTBEAT_TIMEOUT, silence)
        pipe.setsockopt(zmq.HEARTBEAT_TTL, min(silence, _LONGEST_TTL_MS))
        pipe.setsockopt(zmq.IPV6, int(any(":" in peer for peer in self.peers)))
        if pipe.type in _MONITORED:
            # From before the first connection on: one of another mechanism fails at once, and is not tried again.
            pipe.get_monitor_socket(_EVENTS)
        for peer in self.peers if bind else ():
            pipe.setsockopt(zmq.TCP_ACCEPT_FILTER, f"{peer}/{128 if ':' in peer else 32}".encode())
        if self.secret:
            # To know the public key of the binding end is to know the secret: nobody is told it, and a handshake begins with it.
            private = z85.encode(hashlib.sha256(b"twodeep hosts\0" + self.secret.encode()).digest())
            if bind:
                pipe.setsockopt(zmq.CURVE_SERVER, 1)
                pipe.setsockopt(zmq.CURVE_SECRETKEY, private)
            else:
                public, own = zmq.curve_keypair()
                pipe.setsockopt(zmq.CURVE_SERVERKEY, zmq.curve_public(private))
                pipe.setsockopt(zmq.CURVE_PUBLICKEY, public)
                pipe.setsockopt(zmq.CURVE_SECRETKEY, own)

    def withdraw(self, pipe: "zmq.Socket[bytes]") -> None:
        """What `apply` opened is closed: the socket came to nothing."""
        if pipe.type in _MONITORED:
            monitor = pipe.get_monitor_socket(_EVENTS)
            pipe.disable_monitor()
            monitor.close(linger=0)


class Connections:
    """What becomes of the connections of one pipe. For one thread, which may be another than the pipe's."""

    def __init__(self, end: Receiver[FollowerToLeader] | Receiver[LeaderToFollower]) -> None:
        self._end = end._socket
        self._socket = self._end.get_monitor_socket(_EVENTS)  # the one that there is
        self.refused = 0  # that ended before a handshake: by who let nobody in, or by who was not let in
        self.wrong_token = False  # somebody came with another token, or with none, or without a need for one

    def ended(self) -> list[int]:
        """The numbers of those that ended since the last call. Never waits."""
        numbers = []
        while self._socket.poll(0):
            said = parse_monitor_message(self._socket.recv_multipart())
            match said["event"]:
                case zmq.EVENT_DISCONNECTED:
                    numbers.append(int(said["value"]))
                case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                    self.wrong_token |= int(said["value"]) in _WRONG_TOKEN
                    self.refused += 1
                case _:
                    self.refused += 1
        return numbers

    def close(self) -> None:
        """Hears no more. Before the pipe is closed: ZeroMQ's own thread waits for whoever has to hear of a connection."""
        self._end.disable_monitor()
        self._socket.close(linger=0)


class LeaderPipes:
    """Those of the first host. Raises ConfigError, or AddressError when somebody listens there."""

    def __init__(self, config: EngineConfig, peers: tuple[str, ...]) -> None:
        """`peers`: addresses of all hosts, that of the first one first."""
        network = Network(peers, config.hosts_secret, config.pulse_timeout)
        reports, orders = _addresses(peers[0], config.hosts_port)
        try:
            self.orders = Sender(orders, bind=True, own_context=True, network=network, to_all=True)
            try:
                self.reports = Receiver(reports, FROM_FOLLOWER, bind=True, network=network)
            except AddressError:
                self.orders.close(deliver=False)
                raise
        except AddressError as error:
            where = f"{peers[0]}:{config.hosts_port} and the two ports behind it"
            raise AddressError(
                f"--hosts: rank 0 cannot have {where}: {error}: is {config.hosts[0]} this host, and does no other engine have them?"
            ) from error
        self.connections = Connections(self.reports)

    def close(self) -> None:
        """Closes at once, for others or for good. Not while another thread reads."""
        self.connections.close()
        self.orders.close(deliver=False)
        self.reports.close()


class FollowerPipes:
    """Those of another host. They wait for the first one. When a token was wrong they are of no use any more."""

    def __init__(self, config: EngineConfig, leader: str) -> None:
        """`leader`: address of the first host."""
        network = Network((leader,), config.hosts_secret, config.pulse_timeout)
        reports, orders = _addresses(leader, config.hosts_port)
        self.orders = Receiver(orders, FROM_LEADER, bind=False, network=network, to_all=True)
        self.connections = Connections(self.orders)
        self.reports = Sender(reports, bind=False, own_context=True, network=network)

    def close(self) -> None:
        """Closes at once, for others or for good. Not while another thread reads."""
        self.connections.close()
        self.reports.close(deliver=False)
        self.orders.close()


def coordinator_address(config: EngineConfig, leader: str) -> str:
    """Where JAX's coordinator listens."""
    return f"{_bracketed(leader)}:{config.hosts_port + 2}"


def resolve(name: str) -> str:
    """The address of a host. Raises ConfigError when there is none, which may change: names of pods come with the pods."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--hosts: {name}: no known host") from error
    first = min(found, key=lambda one: one[0] != socket.AF_INET)  # where a host has both, all must take the same
    return str(first[4][0])


def resolve_all(names: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The addresses of those that have one by now, and the names of the others."""
    found, unknown = [], []
    for name in names:
        try:
            found.append(resolve(name))
        except ConfigError:
            unknown.append(name)
    return tuple(found), unknown


def _addresses(host: str, port: int) -> tuple[str, str]:
    return f"tcp://{_bracketed(host)}:{port}", f"tcp://{_bracketed(host)}:{port + 1}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
